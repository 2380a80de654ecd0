//! What the engine asks of a VM: one trait for the side that gives it away, one for the side that
//! takes it in.

use std::time::{Duration, Instant};

use crate::GuestRam;
use crate::observation::Observation;
use serde::{Deserialize, Serialize};

/// Result of an operation that the VM does for the engine.
pub type VmResult<T> = Result<T, Observation>;

/// A stretch of guest-physical memory backed by RAM; both ends page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What a destination must be able to build; the first thing that it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDescription {
    /// Name of the VM at the source.
    pub name: String,
    /// RAM layout, ascending by address.
    pub ram: Vec<RamRegion>,
    /// The machine as its VMM describes it to itself (JSON: CPUs, CPUID, devices, disks); opaque here.
    pub machine: String,
    /// Where its disks lie, by which a destination tells whether it has the same; as opaque here. Absent
    /// where there are none, and from a source of version 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<String>,
}

/// How memory gets huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// By its first touch, where the mapping was advised to have them (`MADV_HUGEPAGE`).
    ByAdvice,
    /// By being put together of small ones (`MADV_COLLAPSE`), whatever the host's policy is; that
    /// costs half as much again.
    #[default]
    ByCollapse,
}

/// Whether the guest runs when nobody migrates it; it stays that way through a migration.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// vCPUs run.
    #[default]
    Running,
    /// Its user paused it.
    Paused,
}

/// What parts of a switch-over take, as they were measured beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rehearsal {
    /// Stopping the vCPUs.
    pub stop: Duration,
    /// Saving the state of the machine.
    pub save: Duration,
}

/// The VM as the source of a migration.
///
/// Calls come from the engine's coordinating thread, except [`SourceVm::clear_dirty`], which every
/// data stream calls for the range that it is about to read, and [`SourceVm::flush_disks`].
///
/// # Who marks pages, and who takes the marks
/// vCPUs and devices mark each page after they wrote to it. A fetch shows the vCPUs' marks, which stay
/// until they are cleared, and takes the devices' marks: what was fetched must be sent, or added to what
/// is fetched later. Both kinds go before the page is read: the vCPUs' by [`SourceVm::clear_dirty`], the
/// devices' by the fetch or, before the first pass, by [`SourceVm::forget_device_writes`].
pub trait SourceVm: Send + Sync {
    /// Describes the machine that the destination must build.
    fn describe(&self) -> VmResult<MachineDescription>;
    /// How the state can be written, for the destination's VM to choose from; opaque here. Asked only where
    /// the destination speaks a version of the protocol in which it is told.
    fn offer_state(&self) -> VmResult<Option<String>> {
        Ok(None)
    }
    /// Takes what the destination's VM chose of [`SourceVm::offer_state`], before anything is built; `None`
    /// where it did not choose. An error ends the migration.
    fn agree_on_state(&self, _chosen: Option<&str>) -> VmResult<()> {
        Ok(())
    }
    /// Whether its user lets it run now. While [`SourceVm::pause`] holds the guest that does not change.
    fn run_state(&self) -> RunState {
        RunState::Running
    }
    /// Guest RAM; valid and mapped as long as the VM lives.
    fn ram(&self) -> &GuestRam;
    /// Gives up the exclusive claim on the disks as far as a successor needs it, before the
    /// destination opens them; the source keeps its right to write.
    fn offer_disks(&self) -> VmResult<()>;
    /// Takes the whole claim on the disks back after a failure.
    fn reclaim_disks(&self) -> VmResult<()>;
    /// Turns on dirty logging; every page counts as written by a vCPU from here on until cleared.
    fn start_dirty_log(&self) -> VmResult<()>;
    /// Takes the marks of all that devices, and whoever loaded the guest, wrote until now, and drops
    /// them. Called once, when logging is on and before the first page is read: all pages are about to
    /// be sent.
    fn forget_device_writes(&self) -> VmResult<()>;
    /// Turns off dirty logging.
    fn stop_dirty_log(&self) -> VmResult<()>;
    /// Adds the pages written by vCPUs and devices since they were last cleared to `dirty`: one
    /// bitmap per entry of [`MachineDescription::ram`], bit `i` is page `i` of that region.
    /// vCPU marks stay set until [`SourceVm::clear_dirty`]; device marks are taken by this call.
    fn fetch_dirty(&self, dirty: &mut [Vec<u64>]) -> VmResult<()>;
    /// Clears the dirty marks of the pages whose bits are set in `bits`, from `first_page` of region
    /// `region` on (`first_page` is a multiple of 64), so that later writes are seen again. Called
    /// before the pages are read.
    fn clear_dirty(&self, region: usize, first_page: u64, bits: &[u64]) -> VmResult<()>;
    /// Tells that from now on `threads` threads of this host move memory and want processors beside the
    /// running vCPUs; 0 when they no longer do. A VM whose host has too few for all may see to it that
    /// neither side waits for long. Told before the
    /// destination builds the machine, and when the guest is stopped or stays.
    fn share_processors(&self, _threads: usize) {}
    /// Makes durable what the running guest has written to its disks, so that [`SourceVm::pause`] finds
    /// little to flush. Takes as long as the storage takes; called on a thread of its own, beside all
    /// other calls.
    fn flush_disks(&self) -> VmResult<()> {
        Ok(())
    }
    /// Measures what stopping the guest and saving its state takes, the devices' part of stopping aside.
    /// A guest that runs stands still for that long, some tenths of a millisecond.
    fn rehearse(&self) -> VmResult<Rehearsal> {
        Ok(Rehearsal::default())
    }
    /// Stops the guest: vCPUs, then devices drain and flush their disks. Idempotent.
    fn pause(&self) -> VmResult<()>;
    /// Undoes [`SourceVm::pause`]: the guest goes on, unless its own user had paused it. Idempotent.
    fn resume(&self) -> VmResult<()>;
    /// State of the paused machine: vCPUs, interrupt controllers, clock, devices and queues.
    fn save_state(&self) -> VmResult<Vec<u8>>;
    /// Samples of what the disks `of` hold while the guest is stopped and they are flushed; asked where the
    /// destination's VM wants them (see [`DestinationVm::doubtful_disks`]), and opaque here. At most
    /// [`crate::wire::kind::MAX_SAMPLES`] bytes.
    fn disk_samples(&self, _of: &[String]) -> VmResult<String> {
        Ok(String::new())
    }
    /// What has come for the guest since it was stopped, such as packets, and no earlier answer held;
    /// asked only once it is known to run elsewhere, where it is sent after it. At most
    /// [`crate::wire::control::MAX_LATE`] bytes. `None` when nothing can come.
    fn late(&self) -> Option<Vec<u8>> {
        None
    }
    /// The guest now lives elsewhere: release disks, locks and memory; never resume again.
    fn release(&self);
}

/// The VM as it is taken in.
pub trait DestinationVm: Send {
    /// Says whether this host can build and run the described machine; nothing is built yet.
    fn negotiate(&mut self, description: &MachineDescription) -> VmResult<()>;
    /// Chooses how the described machine's state is to be written, of what its source offered, which is
    /// nothing where that is older; what to answer it, if it offered something. Nothing is built yet.
    fn choose_state(
        &mut self,
        _description: &MachineDescription,
        _offered: Option<&str>,
    ) -> VmResult<Option<String>> {
        Ok(None)
    }
    /// Builds the whole machine, opens its disks and allocates (but does not touch) its RAM.
    fn prepare(&mut self, description: &MachineDescription) -> VmResult<()>;
    /// Guest RAM, zero-filled; available once prepared.
    fn ram(&self) -> VmResult<GuestRam>;
    /// How that RAM gets huge pages.
    fn huge_pages(&self) -> HugePages {
        HugePages::default()
    }
    /// Tells when the state that is loaded next was saved, as far as this side's own clock can tell:
    /// neither before `earliest` nor after `latest`. What a guest's clocks have missed lies between;
    /// neither side's wall clock has a part in it.
    fn saved_between(&mut self, _earliest: Option<Instant>, _latest: Instant) {}
    /// Disks of which only samples of their content can tell whether they are the guest's; asked once the
    /// machine is prepared.
    fn doubtful_disks(&self) -> Vec<String> {
        Vec::new()
    }
    /// Looks whether the disks hold what the source's samples say, if it sent any; before the state is
    /// loaded. An error leaves the guest at the source.
    fn check_disk_samples(&mut self, _samples: Option<&str>) -> VmResult<()> {
        Ok(())
    }
    /// Loads the machine's state into the prepared machine.
    fn load_state(&mut self, state: &[u8]) -> VmResult<()>;
    /// Runs the guest; called once, after the commit was recorded. An error means that no
    /// instruction of the guest was executed.
    fn start(&mut self) -> VmResult<()>;
    /// Takes the guest over without running it, because its user had paused it at the source; in
    /// place of [`DestinationVm::start`].
    fn hold(&mut self) -> VmResult<()> {
        Ok(())
    }
    /// What went wrong as the guest was started, and did not keep it from running; asked once, then.
    fn warnings(&mut self) -> Vec<Observation> {
        Vec::new()
    }
    /// Takes what the source still had for the guest, which runs here: an answer of
    /// [`SourceVm::late`].
    fn take_late(&mut self, late: &[u8]) -> VmResult<()> {
        let _nothing = late;
        Ok(())
    }
    /// Drops everything that was built; the guest runs on at the source.
    fn abandon(&mut self);
}
