//! The VM that is given away.

use std::sync::Arc;

use super::terms::{MachineDescription, Rehearsal, RunState, VmResult};
use super::volume::SourceVolume;
use crate::{GuestRam, MigrationId};

/// All of a VM as the source of a migration.
///
/// Calls come from the engine's coordinating thread, except [`DirtyMemory::clear_vcpu_writes`], which every data
/// stream calls for the range that it is about to read, and [`SourceDisks::flush_disks`].
pub trait SourceVm: SourceMachine + DirtyMemory + SourceDisks {}

impl<T: SourceMachine + DirtyMemory + SourceDisks> SourceVm for T {}

/// The machine: vCPUs, chips and devices.
pub trait SourceMachine: Send + Sync {
    /// Describes the machine that the destination must build.
    fn describe(&self) -> VmResult<MachineDescription>;
    /// How the state can be written, for the destination's VM to choose from; opaque here. Asked only where
    /// the destination agrees on that.
    fn offer_state(&self) -> VmResult<Option<String>> {
        Ok(None)
    }
    /// Takes what the destination's VM chose of [`SourceMachine::offer_state`], before anything is built; `None`
    /// where it did not choose. An error ends the migration.
    fn agree_on_state(&self, _chosen: Option<&str>) -> VmResult<()> {
        Ok(())
    }
    /// Whether its user lets it run now. While [`SourceMachine::pause`] holds the guest that does not change.
    fn run_state(&self) -> RunState {
        RunState::Running
    }
    /// Tells that from now on `threads` threads of this host move memory and want processors beside the
    /// running vCPUs; 0 when they no longer do. A VM whose host has too few for all may see to it that
    /// neither side waits for long. Told before the destination builds the machine, and when the guest is stopped
    /// or stays.
    fn share_processors(&self, _threads: usize) {}
    /// Measures what stopping the guest and saving its state takes, the devices' part of stopping aside.
    /// A guest that runs stands still for that long, some tenths of a millisecond.
    fn rehearse(&self) -> VmResult<Rehearsal> {
        Ok(Rehearsal::default())
    }
    /// Stops the guest: vCPUs first, then devices end the requests that they have in flight. Nothing is flushed.
    /// Idempotent.
    fn pause(&self) -> VmResult<()>;
    /// Undoes [`SourceMachine::pause`]: the guest goes on, unless its own user had paused it. Idempotent.
    fn resume(&self) -> VmResult<()>;
    /// State of the paused machine: vCPUs, interrupt controllers, clock, devices and queues.
    fn save_state(&self) -> VmResult<Vec<u8>>;
    /// Packets that have come for the guest since it was stopped, and that no earlier answer held; asked only
    /// once it is known to run elsewhere, where they are sent after it. At most
    /// [`crate::wire::kind::MAX_FORWARDED`] bytes. `None` when none can come.
    fn packets_to_forward(&self) -> Option<Vec<u8>> {
        None
    }
}

/// The guest's memory, and who wrote to it.
///
/// # Who marks pages, and who takes the marks
/// vCPUs and devices mark each page after they wrote to it. The marks of vCPUs are read as often as one likes and
/// stay until they are cleared; those of devices are taken by whoever reads them: what was taken must be sent, or added
/// to what is taken later. Both go before the page is read.
///
/// A bitmap holds one word for 64 pages, bit `i` is page `i`; there is one bitmap per entry of
/// [`MachineDescription::ram`].
pub trait DirtyMemory: Send + Sync {
    /// Guest RAM; valid and mapped as long as the VM lives.
    fn ram(&self) -> &GuestRam;
    /// Turns on dirty logging; every page counts as written by a vCPU from here on until cleared.
    fn start_dirty_log(&self) -> VmResult<()>;
    /// Turns off dirty logging.
    fn stop_dirty_log(&self) -> VmResult<()>;
    /// Adds the pages to `dirty` that vCPUs wrote since their marks were cleared.
    fn read_vcpu_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()>;
    /// Clears the vCPUs' marks of the pages whose bits are set in `bits`, from `first_page` of region
    /// `region` on (`first_page` is a multiple of 64), so that later writes are seen again.
    fn clear_vcpu_writes(&self, region: usize, first_page: u64, bits: &[u64]) -> VmResult<()>;
    /// Adds the pages to `dirty` that devices, and whoever loaded the guest, wrote until now, and drops their marks.
    fn take_device_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()>;
    /// Drops the marks of what devices, and whoever loaded the guest, wrote until now: all pages are about to be
    /// sent. Called once, when logging is on and before the first page is read.
    fn drop_device_writes(&self) -> VmResult<()>;
    /// Nobody asks for the memory any more, as the guest has all of it elsewhere: it may go. Comes after
    /// [`SourceDisks::hand_over_disks`]. Does nothing where it goes with the process, which then ends.
    fn release_memory(&self) {}
}

/// The guest's disks: those that are opened by the destination as well, and those that travel.
pub trait SourceDisks: Send + Sync {
    /// The disks that travel as blocks, or may ([`super::Wish`]); asked once, first of all. The others the destination
    /// opens where they lie.
    fn volumes(&self) -> VmResult<Vec<Arc<dyn SourceVolume>>> {
        Ok(Vec::new())
    }
    /// Learns which disks travel, of those that were offered, before anything is done with them.
    fn agree_on_disks(&self, _travelling: &[String]) -> VmResult<()> {
        Ok(())
    }
    /// Marks the images of the disks that travel as leaving for `destination`, in migration `id`: from here on, whoever
    /// finds one after a crash has to ask the journal. They stay marked when the guest has gone.
    fn mark_disks(&self, _id: MigrationId, _destination: &str) -> VmResult<()> {
        Ok(())
    }
    /// The guest stays: takes the marks of its disks' images away. Idempotent.
    fn unmark_disks(&self) -> VmResult<()> {
        Ok(())
    }
    /// Has changes of the disks that travel marked from here on; nothing is marked yet, and everything is to be sent.
    fn track_disks(&self) -> VmResult<()> {
        Ok(())
    }
    /// Changes of disks are not marked any more, whoever had them marked. Idempotent.
    fn untrack_disks(&self) -> VmResult<()> {
        Ok(())
    }
    /// Gives up the exclusive claim on the disks as far as a successor needs it, before the
    /// destination opens them; the source keeps its right to write.
    fn offer_disks(&self) -> VmResult<()>;
    /// Takes the whole claim on the disks back after a failure.
    fn reclaim_disks(&self) -> VmResult<()>;
    /// Makes durable what the guest has written to its disks: while it runs, so that little is left later, on a
    /// thread of its own beside all other calls, and when it is stopped, perhaps while the one before is under way.
    /// Takes as long as the storage takes.
    fn flush_disks(&self) -> VmResult<()> {
        Ok(())
    }
    /// Whether the guest has written what no flush that began later has made durable: whether the next one has anything
    /// to do. Asked often, and answered at once.
    fn has_unflushed_writes(&self) -> bool {
        true
    }
    /// Samples of what the disks `of` hold while the guest is stopped and they are flushed; asked where the
    /// destination's VM wants them (see [`super::DestinationDisks::doubtful_disks`]), and opaque here. At most
    /// [`crate::wire::kind::MAX_SAMPLES`] bytes.
    fn disk_samples(&self, _of: &[String]) -> VmResult<String> {
        Ok(String::new())
    }
    /// The guest runs elsewhere, and the disks are its host's: lets go of them for good. The machine is never
    /// resumed after this.
    fn hand_over_disks(&self);
}
