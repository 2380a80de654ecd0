//! What the engine asks of a VM: one trait for the side that gives it away, one for the side that
//! takes it in.

use std::time::Instant;

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

/// The VM as the source of a migration.
///
/// Calls come from the engine's coordinating thread, except [`SourceVm::clear_dirty`], which every
/// data stream calls for the range that it is about to read.
pub trait SourceVm: Send + Sync {
    /// Describes the machine that the destination must build.
    fn describe(&self) -> VmResult<MachineDescription>;
    /// Whether its user lets it run; asked once, when the migration begins.
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
    /// Turns on dirty logging; every page counts as dirty from here on until cleared.
    fn start_dirty_log(&self) -> VmResult<()>;
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
    /// Stops the guest: vCPUs, then devices drain and flush their disks. Idempotent.
    fn pause(&self) -> VmResult<()>;
    /// Undoes [`SourceVm::pause`]: the guest goes on, unless its own user had paused it. Idempotent.
    fn resume(&self) -> VmResult<()>;
    /// State of the paused machine: vCPUs, interrupt controllers, clock, devices and queues.
    fn save_state(&self) -> VmResult<Vec<u8>>;
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
