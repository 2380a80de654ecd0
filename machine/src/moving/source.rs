//! The running machine as the source of a migration.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::image::Image;
use migration::disk_modes::{DiskMode, DiskModes};
use migration::observation::{Observation, Side};
use migration::vm::{
    DirtyMemory, MachineDescription, Rehearsal, RunState, SourceDisks, SourceMachine, SourceVolume,
    VmResult, Wish,
};
use migration::{GuestRam, HostId, MigrationId};

use crate::build::spec::DiskAccess;
use crate::disks::away::InOverlay;
use crate::disks::marks::{self, Mark};
use crate::error::MachineError;
use crate::kvm::slots::DirtyLog;
use crate::machine::Machine;
use crate::moving::disk_move::snapshot::with_guest::WithGuest;
use crate::moving::forwarding;
use crate::moving::volume::{LeftVolume, OutgoingVolume, SnapshotVolume};
use crate::power::PauseReason;
use crate::snapshot::agreement::{Agreed, Known};
use crate::state::components;
use crate::state::v1;
use crate::state::{Form, RunStateV1};

/// A machine that may leave this host.
pub(crate) struct MachineSource {
    machine: Arc<Machine>,
    name: String,
    /// Components of its state, and the versions in which each can be written.
    known: Known,
    /// How the state is written, as was agreed on with the destination.
    form: Mutex<Form>,
    /// How its disks move.
    modes: DiskModes,
    /// Disks of which somebody serves what stays behind.
    served: Vec<String>,
    /// Those that go by way of overlays.
    ways: Vec<Arc<WithGuest>>,
    /// Those that travel with it.
    travelling: Mutex<Vec<String>>,
    /// Who records what becomes of it, where disks travel.
    journal: Option<HostId>,
}

impl MachineSource {
    pub(crate) fn new(machine: Arc<Machine>, name: &str) -> Self {
        Self {
            known: components::of(machine.spec()),
            machine,
            name: name.to_owned(),
            form: Mutex::new(Form::One),
            modes: Vec::new(),
            served: Vec::new(),
            ways: Vec::new(),
            travelling: Mutex::default(),
            journal: None,
        }
    }

    /// Has its disks move as `modes` says, with those `served` that are named and others by way of overlays; the destination opens those
    /// that are not named in `modes` where they lie. `journal` records what becomes of it.
    pub(crate) fn with_disks(
        self,
        modes: DiskModes,
        served: Vec<String>,
        ways: Vec<Arc<WithGuest>>,
        journal: HostId,
    ) -> Self {
        Self {
            modes,
            served,
            ways,
            journal: Some(journal),
            ..self
        }
    }

    /// One that writes other components or versions, as a later version of this program may.
    #[cfg(test)]
    pub(crate) fn writing(self, known: Known) -> Self {
        Self { known, ..self }
    }

    fn lock_travelling(&self) -> MutexGuard<'_, Vec<String>> {
        self.travelling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the content of disk `id` stays behind, to be fetched from there.
    fn stays_behind(&self, id: &str) -> bool {
        let mode = self.modes.iter().find(|(disk, _)| disk == id);
        mode.is_some_and(|(_, mode)| *mode == DiskMode::OnDemand)
    }

    /// How disk `id` goes by way of overlays, if it does.
    fn way_of(&self, id: &str) -> Option<&Arc<WithGuest>> {
        self.ways.iter().find(|way| way.id() == id)
    }

    /// Images that the guest may write: only those are ever out of date elsewhere.
    fn written(&self) -> impl Iterator<Item = (&String, Image)> {
        let spec = self.machine.spec().disks.iter();
        let written = spec.filter(|disk| disk.access == DiskAccess::ReadWrite);
        let disks = &self.machine.devices().disks;
        written.filter_map(|disk| Some((&disk.id, disks.image(&disk.id)?)))
    }

    /// How the state is to be written for a destination that chose so.
    fn agree(&self, chosen: Option<&str>) -> Result<Form, MachineError> {
        match chosen {
            Some(chosen) => {
                let agreed = Agreed::from_json(chosen)?;
                self.known.check(&agreed)?;
                Ok(Form::Components(agreed))
            }
            None => {
                let first = self.known.in_first_version(&v1::KINDS);
                self.known.check(&first.newest())?;
                Ok(Form::One)
            }
        }
    }
}

fn observed(e: &MachineError) -> Observation {
    e.observed(Side::Source)
}

fn of_mark(disk: &str, error: &block::Error) -> Observation {
    let message = format!("the image of disk {disk} cannot be marked");
    Observation::new(Side::Source, "disk.mark", message).caused_by(Observation::from_error(
        Side::Source,
        "disk.io",
        error,
    ))
}

impl SourceMachine for MachineSource {
    fn describe(&self) -> VmResult<MachineDescription> {
        let mut description = self.machine.current_spec().describe(&self.name)?;
        let places = self.machine.devices().disks.places();
        description.disks = places.map(|places| places.to_json()).transpose()?;
        Ok(description)
    }

    fn offer_state(&self) -> VmResult<Option<String>> {
        Ok(Some(self.known.to_json()))
    }

    fn agree_on_state(&self, chosen: Option<&str>) -> VmResult<()> {
        let form = self.agree(chosen).map_err(|e| observed(&e))?;
        *self.form.lock().unwrap_or_else(PoisonError::into_inner) = form;
        Ok(())
    }

    fn run_state(&self) -> RunState {
        if self.machine.paused_for(PauseReason::User) {
            RunState::Paused
        } else {
            RunState::Running
        }
    }

    fn share_processors(&self, threads: usize) {
        self.machine.share_processors(threads);
    }

    fn rehearse(&self) -> VmResult<Rehearsal> {
        self.machine.rehearse().map_err(|e| observed(&e))
    }

    fn pause(&self) -> VmResult<()> {
        self.machine
            .stop(PauseReason::Migration)
            .map_err(|e| observed(&e))?;
        match self.machine.end() {
            Some(why) => {
                let message = "the guest ended while it was being migrated";
                let ended = Observation::new(Side::Source, "guest.ended", message);
                Err(ended.caused_by(why.clone()))
            }
            None => Ok(()),
        }
    }

    fn resume(&self) -> VmResult<()> {
        self.machine
            .resume(PauseReason::Migration)
            .map_err(|e| observed(&e))
    }

    fn save_state(&self) -> VmResult<Vec<u8>> {
        let run = match self.run_state() {
            RunState::Running => RunStateV1::Running,
            RunState::Paused => RunStateV1::Paused,
        };
        let form = self.form.lock().unwrap_or_else(PoisonError::into_inner);
        self.machine.save_as(run, &form).map_err(|e| observed(&e))
    }

    fn packets_to_forward(&self) -> Option<Vec<u8>> {
        forwarding::collect(&self.machine.devices().nets)
    }
}

impl DirtyMemory for MachineSource {
    fn ram(&self) -> &GuestRam {
        self.machine.ram()
    }

    fn start_dirty_log(&self) -> VmResult<()> {
        self.machine
            .set_dirty_log(DirtyLog::On)
            .map_err(|e| observed(&e))
    }

    fn stop_dirty_log(&self) -> VmResult<()> {
        self.machine
            .set_dirty_log(DirtyLog::Off)
            .map_err(|e| observed(&e))
    }

    fn read_vcpu_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        let read = self.machine.read_vcpu_writes(dirty);
        read.map_err(|e| observed(&e))
    }

    fn clear_vcpu_writes(&self, region: usize, first_page: u64, bits: &[u64]) -> VmResult<()> {
        self.machine
            .clear_vcpu_writes(region, first_page, bits)
            .map_err(|e| observed(&e))
    }

    fn take_device_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        let taken = self.machine.take_device_writes(dirty);
        taken.map_err(|e| observed(&e))
    }

    fn drop_device_writes(&self) -> VmResult<()> {
        self.machine.drop_device_writes();
        Ok(())
    }
}

impl SourceDisks for MachineSource {
    fn volumes(&self) -> VmResult<Vec<Arc<dyn SourceVolume>>> {
        let offered = self.modes.iter().filter_map(|(id, mode)| match mode {
            DiskMode::Shared => None,
            DiskMode::Auto => Some((id, Wish::MayTravel)),
            DiskMode::Precopy | DiskMode::Mirror | DiskMode::Snapshot => Some((id, Wish::Travels)),
            DiskMode::OnDemand => Some((id, Wish::OnDemand)),
        });
        let volumes = offered.map(|(id, wish)| {
            let machine = &self.machine;
            let volume: Option<Arc<dyn SourceVolume>> = match (wish, self.way_of(id)) {
                (_, Some(way)) => SnapshotVolume::of(machine, way).map(|it| Arc::new(it) as _),
                (Wish::OnDemand, None) => LeftVolume::of(machine, id).map(|it| Arc::new(it) as _),
                (Wish::Travels | Wish::MayTravel, None) => {
                    OutgoingVolume::of(machine, id, wish).map(|it| Arc::new(it) as _)
                }
            };
            volume.ok_or_else(|| {
                let message = format!("the guest has no disk {id}");
                Observation::new(Side::Source, "disk.unknown", message)
            })
        });
        volumes.collect()
    }

    fn agree_on_disks(&self, travelling: &[String]) -> VmResult<()> {
        *self.lock_travelling() = travelling.to_vec();
        Ok(())
    }

    fn mark_disks(&self, id: MigrationId, destination: &str) -> VmResult<()> {
        let Some(journal) = self.journal else {
            return Ok(());
        };
        let mark = Mark::new(id, journal, Some(destination));
        let of_later = Mark::of_guest_on_demand(id, journal, Some(destination));
        let travelling = self.lock_travelling();
        for (disk, image) in self.written().filter(|(id, _)| travelling.contains(id)) {
            if let Some(way) = self.way_of(disk) {
                way.mark(id).map_err(|e| e.observed())?;
                continue;
            }
            let is_served = self.served.contains(disk);
            let mark = if is_served { &of_later } else { &mark };
            let set = mark.set_leaving(image.file());
            let set = set.map_err(|e| of_mark(disk, &e))?;
            if !set && is_served {
                let message = format!(
                    "disk {disk} cannot go on demand: the storage of its image has no marks (extended attributes of users), by \
                     which it is known to be needed there"
                );
                return Err(Observation::new(Side::Source, "disk.no-marks", message));
            }
            if !set {
                tracing::warn!(%disk, "the storage has no marks: when the guest has gone, nothing will keep others from its image");
            }
        }
        Ok(())
    }

    fn unmark_disks(&self) -> VmResult<()> {
        let away = self.machine.devices().disks.away();
        let marked = self
            .written()
            .filter(|(id, image)| !away.has(id) && marks::are_on(image.file()));
        let mut removed = Ok(());
        for (id, image) in marked {
            // Each, whatever comes of one.
            removed = removed.and(marks::stays(image.file()).map_err(|e| of_mark(id, &e)));
        }
        removed
    }

    fn track_disks(&self) -> VmResult<()> {
        let devices = self.machine.devices();
        let tracked = self
            .lock_travelling()
            .iter()
            .filter(|id| !self.stays_behind(id) && self.way_of(id).is_none())
            .try_for_each(|id| devices.track(id));
        tracked.map_err(|e| observed(&e))?;
        self.ways.iter().try_for_each(|way| {
            devices.disks.away().add(way.clone());
            way.begin().map_err(|e| e.observed())
        })
    }

    fn untrack_disks(&self) -> VmResult<()> {
        let devices = self.machine.devices();
        let back = devices.disks.away().bring_back();
        devices.untrack_all().map_err(|e| observed(&e)).and(back)
    }

    fn offer_disks(&self) -> VmResult<()> {
        let devices = self.machine.devices();
        let travelling = self.lock_travelling();
        devices
            .claims
            .offer(|id| !travelling.iter().any(|it| it == id))
            .map_err(|e| observed(&e))?;
        devices.disks.exclusive_opens().offer();
        Ok(())
    }

    fn reclaim_disks(&self) -> VmResult<()> {
        self.machine.devices().disks.exclusive_opens().withdraw();
        self.machine
            .devices()
            .claims
            .reclaim()
            .map_err(|e| observed(&e))
    }

    fn flush_disks(&self) -> VmResult<()> {
        let devices = self.machine.devices();
        let flushed = if self.machine.paused_for(PauseReason::Migration) {
            devices.flush_stopped()
        } else {
            devices.flush()
        };
        flushed.map_err(|e| observed(&e))
    }

    fn has_unflushed_writes(&self) -> bool {
        self.machine.devices().has_unflushed_writes()
    }

    fn disk_samples(&self, of: &[String]) -> VmResult<String> {
        let disks = &self.machine.devices().disks;
        disks.samples(of).map_err(|e| observed(&e))
    }

    fn hand_over_disks(&self) {
        // Before anybody else reads the images.
        self.machine.devices().disks.end_coming();
        self.machine.devices().disks.exclusive_opens().release();
        self.machine.devices().claims.release();
        self.machine.devices().disks.away().let_go();
    }
}
