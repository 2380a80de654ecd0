//! The VM that is taken in.

use std::sync::Arc;
use std::time::Instant;

use super::terms::{HugePages, MachineDescription, VmResult};
use super::volume::{DestinationVolume, TravellingDisk, VolumeOffer};
use crate::endpoint::RemoteHost;
use crate::observation::{Observation, Side};
use crate::{GuestRam, MigrationId};

/// All of a VM as it is taken in. Calls come from the engine's coordinating thread.
pub trait DestinationVm: DestinationMachine + DestinationMemory + DestinationDisks {}

impl<T: DestinationMachine + DestinationMemory + DestinationDisks> DestinationVm for T {}

/// The machine: built, loaded, then run or dropped. After [`DestinationMachine::abandon`] it can be negotiated and
/// built again.
pub trait DestinationMachine: Send {
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
    /// place of [`DestinationMachine::start`].
    fn take_over_paused(&mut self) -> VmResult<()> {
        Ok(())
    }
    /// What went wrong as the guest was started, and did not keep it from running; asked once, then.
    fn warnings(&mut self) -> Vec<Observation> {
        Vec::new()
    }
    /// Gives the guest, which runs here, the packets that its source forwards: an answer of
    /// [`super::SourceMachine::packets_to_forward`].
    fn take_forwarded(&mut self, packets: &[u8]) -> VmResult<()> {
        let _nothing = packets;
        Ok(())
    }
    /// Drops everything that was built, and is as before the first [`DestinationMachine::negotiate`]; the guest
    /// runs on at the source.
    fn abandon(&mut self);
}

/// Where the guest's memory is placed.
pub trait DestinationMemory: Send {
    /// Guest RAM, zero-filled; available once prepared.
    fn ram(&self) -> VmResult<GuestRam>;
    /// How that RAM gets huge pages.
    fn huge_pages(&self) -> HugePages {
        HugePages::default()
    }
}

/// The guest's disks, as this host has opened them.
pub trait DestinationDisks: Send {
    /// Learns which disks travel as blocks, before the machine is negotiated, and whether this host takes them:
    /// there is a place for each, and room in it. Nothing is made yet. What is made later is of migration `_id`, by which
    /// its journal tells what became of it.
    fn expect_volumes(&mut self, _id: MigrationId, offered: &[VolumeOffer]) -> VmResult<()> {
        match offered.first() {
            None => Ok(()),
            Some(disk) => Err(Observation::new(
                Side::Destination,
                "negotiate.disk",
                format!("this VM takes no disk that travels, as {} does", disk.id),
            )),
        }
    }
    /// Looks whether this host reaches who serves the disks whose content is fetched when the guest is here. Before the commit nobody
    /// is connected to but `_source`, the host that the guest comes from. Asked once the machine is negotiated; an error leaves
    /// the guest at the source.
    fn reach_servers(&mut self, _source: RemoteHost) -> VmResult<()> {
        Ok(())
    }
    /// Which of them travel, in the order of the offers; asked once the machine is negotiated.
    fn travelling_disks(&self) -> Vec<TravellingDisk> {
        Vec::new()
    }
    /// Where the blocks of those go, in the same order; asked once the machine is prepared.
    fn volumes(&self) -> VmResult<Vec<Arc<dyn DestinationVolume>>> {
        Ok(Vec::new())
    }
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
}
