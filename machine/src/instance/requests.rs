//! What is asked of a VM at its control socket.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use control::disk_move::{DiskMoveFiles, DiskMoveRequest};
use control::instance::{Instance, Requester, StopMode, VmState, VmStatus};
use control::job::{Job, JobState, Jobs};
use control::on_demand::OnDemandChange;
use control::passed::PassedFile;
use migration::observation::{Observation, Side};
use migration::progress::LimitChange;
use migration::request::MigrateRequest;
use migration::steering::Events;

use crate::error::MachineError;
use crate::instance::vm::{Core, Farewell, VmInstance, refuse, running_state, wrong_state};
use crate::machine::Machine;

/// How long a guest may take to power off after its power button was pressed.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// How long the thread that answers peers may take to stop listening.
const DOOR_PATIENCE: Duration = Duration::from_secs(12);

/// A VM as its control socket serves it.
pub(crate) struct Served(pub Arc<VmInstance>);

impl Deref for Served {
    type Target = Arc<VmInstance>;

    fn deref(&self) -> &Arc<VmInstance> {
        &self.0
    }
}

impl Instance for Served {
    fn status(&self) -> VmStatus {
        self.status_of(&self.told())
    }

    fn pause(&self) -> Result<(), Observation> {
        let machine = self.machine()?;
        let paused = machine.user_pause();
        // It stands still even when a disk could not be flushed.
        self.note_running(&machine);
        in_time(paused)
    }

    fn resume(&self) -> Result<(), Observation> {
        let machine = self.machine()?;
        let resumed = machine.user_resume();
        self.note_running(&machine);
        in_time(resumed)
    }

    fn stop(&self, mode: StopMode, by: Requester) -> Result<(), Observation> {
        match mode {
            StopMode::Graceful => {
                let machine = self.machine()?;
                self.lock().asked = Some(by.told(mode));
                machine
                    .devices()
                    .press_power_button()
                    .map_err(|e| e.observed(Side::Source))?;
                drop(machine);
                let mut core = self.wait_while(POWER_OFF_PATIENCE, |core| !core.state.is_final());
                match core.state {
                    VmState::Migrated => Err(wrong_state(core.state)),
                    state if state.is_final() => Ok(()),
                    _ => {
                        core.asked = None;
                        let message =
                            "the guest does not power off at its power button: use --force";
                        Err(refuse("guest.no-power-off", message))
                    }
                }
            }
            StopMode::Force => self.stop_now(by.told(mode)),
        }
    }

    fn migrate(
        &self,
        request: MigrateRequest,
        overlays: Vec<Vec<PassedFile>>,
    ) -> Result<String, Observation> {
        self.leave(request, overlays)
    }

    fn migration_events(&self) -> Option<Events> {
        self.lock()
            .migration
            .as_ref()
            .map(|m| m.steering.subscribe())
    }

    fn cancel_migration(&self) -> Result<(), Observation> {
        match self.lock().active() {
            Some(migration) => migration.cancel(),
            None => Err(refuse("migration.none", "no migration is running")),
        }
    }

    fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        match self.lock().active() {
            Some(migration) => migration.set_limits(change),
            None => Err(refuse("migration.none", "no migration is running")),
        }
    }

    fn jobs(&self) -> Jobs {
        self.told().jobs()
    }

    fn wait_job(&self, id: &str, seen: JobState, timeout: Duration) -> Result<Job, Observation> {
        let is_as_seen = |core: &Core| core.jobs().find(id).is_ok_and(|job| job.state == seen);
        drop(self.wait_while(timeout, is_as_seen));
        self.jobs().find(id)
    }

    fn cancel_job(&self, id: &str) -> Result<(), Observation> {
        self.lock().steered(id)?.cancel()
    }

    fn set_job_limits(&self, id: &str, change: LimitChange) -> Result<(), Observation> {
        self.lock().steered(id)?.set_limits(change)
    }

    fn pause_job(&self, id: &str) -> Result<(), Observation> {
        self.lock().steered(id)?.pause()
    }

    fn resume_job(&self, id: &str) -> Result<(), Observation> {
        self.lock().steered(id)?.resume()
    }

    fn move_disk(
        &self,
        id: &str,
        request: DiskMoveRequest,
        files: DiskMoveFiles,
    ) -> Result<(), Observation> {
        self.move_disk_to(id, request, files)
    }

    fn change_on_demand(&self, id: &str, change: OnDemandChange) -> Result<(), Observation> {
        self.change_missing(id, change)
    }

    fn resolve(&self, sockets: Vec<SocketAddr>) -> Result<VmState, Observation> {
        let state = self.settle_handover(sockets)?;
        self.await_told();
        Ok(state)
    }

    fn wait_change(&self, seen: VmState, timeout: Duration) -> VmState {
        self.state_after(seen, timeout)
    }

    fn wait_end(&self, seen: &VmStatus, timeout: Duration) -> Option<VmStatus> {
        let is_news = |core: &Core| {
            core.shown() != seen.state || core.failed_migrations != seen.failed_migrations
        };
        // One that has ended is not told of before its disks are free.
        let core = self.wait_while(timeout, |core| {
            core.farewell == Farewell::Pending && (!is_news(core) || core.state.is_final())
        });
        (core.farewell != Farewell::Pending).then(|| self.status_of(&core))
    }

    fn own_status(&self) -> VmStatus {
        self.status_of(&self.lock())
    }

    fn close_door(&self) {
        let door = self.lock().door.take();
        if door.is_some_and(|door| !door.close(DOOR_PATIENCE)) {
            tracing::warn!("the address that the VM listened at is not free yet");
        }
    }

    fn tell_end(&self) {
        self.lock().farewell = Farewell::Told;
        self.changed.notify_all();
    }
}

impl VmInstance {
    /// Waits for another state than `seen`, at most for `timeout`, and gives back the one that is told then.
    pub(crate) fn state_after(&self, seen: VmState, timeout: Duration) -> VmState {
        // That the guest is being handed over is not told by itself: it is over in a moment, or its end
        // is told.
        drop(self.wait_while(timeout, |core| core.shown() == seen));
        self.told().shown()
    }

    fn note_running(&self, machine: &Machine) {
        let mut core = self.lock();
        if matches!(core.state, VmState::Running | VmState::Paused) {
            core.state = running_state(machine);
        }
        self.changed.notify_all();
    }
}

/// What the user is told of a pause or resume that was done, or came too late for it.
fn in_time(done: Result<bool, MachineError>) -> Result<(), Observation> {
    match done {
        Ok(true) => Ok(()),
        Ok(false) => Err(refuse(
            "migration.active",
            "the guest is being handed over: ask the host that has it when that is done",
        )),
        Err(e) => Err(e.observed(Side::Source)),
    }
}
