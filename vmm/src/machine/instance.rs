//! The VM of this process as its control socket sees it.
//!
//! # States
//! `incoming → running | paused | failed`, `running ⇄ paused`, `running | paused → handover-unknown`,
//! `handover-unknown → running | paused | migrated`, and from any of them `stopped`, `migrated` or
//! `failed`, which are final. Only the thread that made a transition true records it. `handing-over` is
//! how `running` and `paused` are told while a migration holds the guest still.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use migration::MigrationId;
use migration::address::Address;
use migration::control::Control;
use migration::observation::{Observation, Side};
use migration::progress::Event;

use super::events::observed;
use super::power::PauseReason;
use super::{Machine, MachineError};
use crate::instance::{
    Instance, LimitChange, MigrateRequest, MigrationStatus, StopMode, VmState, VmStatus,
};
use crate::runtime_dir::VmDir;
use crate::sandbox::{self, Kind};
use crate::vcpu::GuestEvent;

/// How long a guest may take to power off after its power button was pressed.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// How long the guest's last output may take to the console, which never blocks.
const LAST_OUTPUT: Duration = Duration::from_secs(10);
/// How long a cancelled migration may take to end before `stop` gives up.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);

/// One VM and what this process knows of it.
pub(super) struct VmInstance {
    pub(super) dir: VmDir,
    began: Instant,
    core: Mutex<Core>,
    pub(super) changed: Condvar,
}

pub(super) struct Core {
    pub(super) state: VmState,
    pub(super) machine: Option<Arc<Machine>>,
    pub(super) migration: Option<Migration>,
    /// The VM is being ended by force.
    pub(super) stopping: bool,
    listen: Option<String>,
    /// Socket file that we listen at, to be removed with the VM.
    socket: Option<PathBuf>,
    error: Option<Observation>,
}

/// The migration that runs, or the last one.
pub(super) struct Migration {
    /// Of a guest that leaves; of one that comes in, the control knows it once the source has told.
    pub(super) id: Option<MigrationId>,
    pub(super) to: Option<Address>,
    pub(super) control: Arc<Control>,
    pub(super) stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It runs.
    Active,
    /// The destination is being asked who runs the guest.
    Resolving,
    /// Nothing is under way.
    Ended,
}

pub(super) fn refuse(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Source, id, message)
}

impl VmInstance {
    pub(super) fn new(dir: &VmDir, state: VmState) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.clone(),
            began: Instant::now(),
            core: Mutex::new(Core {
                state,
                machine: None,
                migration: None,
                stopping: false,
                listen: None,
                socket: None,
                error: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Where a guest, or a question about it, may come in; a socket file goes away with the VM.
    pub(super) fn listens_at(&self, address: String, socket: Option<PathBuf>) {
        let mut core = self.lock();
        core.listen = Some(address);
        core.socket = socket;
    }

    /// Shows an incoming migration in the status.
    pub(super) fn takes_in(&self, control: Arc<Control>) {
        self.lock().migration = Some(Migration {
            id: None,
            to: None,
            control,
            stage: Stage::Active,
        });
    }

    /// The machine now belongs to this VM and runs, or stands still for its user.
    ///
    /// The guest may have ended already: then the VM has its final state, or is about to get it.
    pub(super) fn holds(&self, machine: &Arc<Machine>) {
        {
            let mut core = self.lock();
            if !is_final(core.state) {
                core.state = running_state(machine);
            }
            core.machine = Some(machine.clone());
            if let Some(migration) = &mut core.migration {
                migration.stage = Stage::Ended;
            }
            self.changed.notify_all();
        }
        // Whoever follows the guest's end found no machine to stop, if it was that fast.
        if machine.ended() {
            stop_for_good(machine);
        }
    }

    /// Ends the VM for good; a state that is already final stays, and so does one that only an answer
    /// of the destination can end.
    pub(super) fn end(&self, state: VmState, error: Option<Observation>) {
        let mut core = self.lock();
        // Nobody moves the guest of a VM that has ended; whoever waits for that need not.
        if let Some(migration) = &mut core.migration {
            migration.stage = Stage::Ended;
        }
        if !is_final(core.state) && core.state != VmState::HandoverUnknown {
            core.finish(state);
            core.error = error;
        }
        self.changed.notify_all();
    }

    /// Follows the guest's own end on a thread of its own.
    pub(super) fn follow(self: &Arc<Self>, events: Receiver<GuestEvent>) -> std::io::Result<()> {
        let instance = self.clone();
        thread::Builder::new()
            .name("guest-end".into())
            .spawn(move || {
                sandbox::begin(Kind::Caretaker);
                let Ok(event) = events.recv() else { return };
                let (machine, control) = {
                    let core = instance.lock();
                    (
                        core.machine.clone(),
                        core.active().map(|m| m.control.clone()),
                    )
                };
                if let Some(machine) = &machine {
                    stop_for_good(machine);
                }
                // What is left cannot be migrated; the engine notices by itself at the latest when it
                // stops the guest.
                if let Some(control) = control {
                    control.guest_ended(observed(&event));
                    instance.wait_idle(CANCEL_PATIENCE);
                }
                // One that has only just come in was not there before.
                let late = instance.lock().machine.clone();
                if let (None, Some(machine)) = (machine, late) {
                    stop_for_good(&machine);
                }
                match event {
                    GuestEvent::Reset => {
                        tracing::info!("the guest asked for a reset, which ends it");
                        instance.end(VmState::Stopped, None);
                    }
                    GuestEvent::PowerOff => instance.end(VmState::Stopped, None),
                    GuestEvent::Failed(why) => {
                        tracing::error!(id = why.id, "the guest failed: {why}");
                        instance.end(VmState::Failed, Some(why));
                    }
                }
            })?;
        Ok(())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Result<Arc<Machine>, Observation> {
        let core = self.lock();
        match (&core.machine, core.state) {
            (Some(machine), VmState::Running | VmState::Paused) => Ok(machine.clone()),
            (_, state) => Err(wrong_state(state)),
        }
    }

    /// Blocks until no migration is active, or the VM has ended; whether that came true in time.
    fn wait_idle(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut core = self.lock();
        while core.active().is_some() && !is_final(core.state) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            core = self
                .changed
                .wait_timeout(core, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Core {
    /// Enters a final state, after which the process may be gone at any moment.
    pub(super) fn finish(&mut self, state: VmState) {
        if let Some(socket) = self.socket.take() {
            // Someone else may have removed it; nothing is lost then.
            let _ = std::fs::remove_file(socket);
        }
        self.state = state;
    }

    /// The state as it is told: a guest that its migration has stopped runs here no longer, and may run
    /// at the destination already.
    fn shown(&self) -> VmState {
        let stopped = |machine: &Arc<Machine>| machine.paused_for(PauseReason::Migration);
        match self.state {
            VmState::Running | VmState::Paused
                if self.active().is_some() && self.machine.as_ref().is_some_and(stopped) =>
            {
                VmState::HandingOver
            }
            state => state,
        }
    }

    pub(super) fn active(&self) -> Option<&Migration> {
        self.migration.as_ref().filter(|m| m.stage == Stage::Active)
    }
}

/// Stops the machine of a guest that is over.
fn stop_for_good(machine: &Machine) {
    if let Err(e) = machine.pause(PauseReason::Ended) {
        tracing::warn!(error = %e, "devices did not drain at the guest's end");
    }
    hear_out(machine);
}

/// Waits for the last that a guest printed here; before its VM gets a final state, after which the process
/// may be gone, and that with it.
pub(super) fn hear_out(machine: &Machine) {
    if !machine.devices().drain_output(LAST_OUTPUT) {
        tracing::warn!("the last that the guest printed has not reached the console in time");
    }
}

/// What a machine that is here does.
pub(super) fn running_state(machine: &Machine) -> VmState {
    if machine.paused_for(PauseReason::User) {
        VmState::Paused
    } else {
        VmState::Running
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

pub(super) fn is_final(state: VmState) -> bool {
    matches!(
        state,
        VmState::Migrated | VmState::Stopped | VmState::Failed
    )
}

pub(super) fn wrong_state(state: VmState) -> Observation {
    let message = match state {
        VmState::Incoming => "the guest has not come in yet",
        VmState::HandingOver => {
            "the guest is being handed over: ask the host that has it when that is done"
        }
        VmState::HandoverUnknown => {
            "it is not known whether the destination runs the guest: use `vmm migrate NAME --resolve`"
        }
        VmState::Migrated => "the guest has moved to another host",
        VmState::Stopped => "the guest has ended",
        VmState::Failed => "the guest has failed",
        VmState::Running => "the guest runs",
        VmState::Paused => "the guest is paused",
    };
    refuse("vm.wrong-state", message)
}

impl Instance for Arc<VmInstance> {
    fn status(&self) -> VmStatus {
        let core = self.lock();
        VmStatus {
            name: self.dir.name(),
            state: core.shown(),
            pid: std::process::id(),
            cpus: core.machine.as_ref().map_or(0, |m| m.spec().cpus()),
            memory_bytes: core.machine.as_ref().map_or(0, |m| m.spec().memory),
            uptime_ms: self.began.elapsed().as_millis() as u64,
            listen: core.listen.clone(),
            migration: core.migration.as_ref().map(|m| MigrationStatus {
                id: m.id.or_else(|| m.control.id()).map(|id| id.to_string()),
                last: m.control.last_event(),
            }),
            error: core.error.clone(),
        }
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

    fn stop(&self, mode: StopMode) -> Result<(), Observation> {
        match mode {
            StopMode::Graceful => {
                let machine = self.machine()?;
                machine
                    .devices()
                    .press_power_button()
                    .map_err(|e| e.observed(Side::Source))?;
                drop(machine);
                let deadline = Instant::now() + POWER_OFF_PATIENCE;
                let mut core = self.lock();
                while !is_final(core.state) {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        let message =
                            "the guest does not power off at its power button: use --force";
                        return Err(refuse("guest.no-power-off", message));
                    };
                    core = self
                        .changed
                        .wait_timeout(core, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                match core.state {
                    VmState::Migrated => Err(wrong_state(core.state)),
                    _ => Ok(()),
                }
            }
            StopMode::Force => self.stop_now(),
        }
    }

    fn migrate(&self, request: MigrateRequest) -> Result<String, Observation> {
        self.leave(request)
    }

    fn migration_events(&self) -> Option<Receiver<Event>> {
        self.lock()
            .migration
            .as_ref()
            .map(|m| m.control.subscribe())
    }

    fn cancel_migration(&self) -> Result<(), Observation> {
        match self.lock().active() {
            Some(migration) if migration.control.cancel() => Ok(()),
            Some(_) => Err(refuse(
                "migration.committing",
                "it is too late: the commit is on its way, or the migration is ending",
            )),
            None => Err(refuse("migration.none", "no migration is running")),
        }
    }

    fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        let LimitChange {
            downtime,
            bandwidth,
        } = change;
        match self.lock().active() {
            Some(migration) => {
                let mut limits = migration.control.limits();
                if let Some(downtime) = downtime {
                    limits.downtime = downtime;
                }
                if let Some(bandwidth) = bandwidth {
                    limits.bandwidth = (bandwidth > 0).then_some(bandwidth);
                }
                migration.control.set_limits(limits);
                Ok(())
            }
            None => Err(refuse("migration.none", "no migration is running")),
        }
    }

    fn resolve(&self) -> Result<VmState, Observation> {
        self.settle_handover()
    }

    fn wait_change(&self, seen: VmState, timeout: Duration) -> VmState {
        let deadline = Instant::now() + timeout;
        let mut core = self.lock();
        // That the guest is being handed over is not told by itself: it is over in a moment, or its end
        // is told.
        while core.shown() == seen {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            core = self
                .changed
                .wait_timeout(core, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        core.shown()
    }
}

impl VmInstance {
    fn note_running(&self, machine: &Machine) {
        let mut core = self.lock();
        if matches!(core.state, VmState::Running | VmState::Paused) {
            core.state = running_state(machine);
        }
        self.changed.notify_all();
    }

    /// Ends the guest without asking it, unless it is, or may be, somebody else's.
    fn stop_now(&self) -> Result<(), Observation> {
        let (state, control) = {
            let mut core = self.lock();
            if matches!(core.state, VmState::HandoverUnknown | VmState::Migrated) {
                return Err(wrong_state(core.state));
            }
            // A migration that began from here on would carry away what is being ended.
            core.stopping = true;
            (core.state, core.active().map(|m| m.control.clone()))
        };
        if let Some(control) = &control {
            match state {
                // There is no guest yet: who sends it keeps it.
                VmState::Incoming => control.cancel(),
                _ => control.guest_ended(refuse("vm.stopped", "its user ended the guest")),
            };
        }
        let stopped = self.stop_after(control.is_some());
        if stopped.is_err() {
            self.lock().stopping = false;
        }
        stopped
    }

    fn stop_after(&self, migrating: bool) -> Result<(), Observation> {
        if migrating && !self.wait_idle(CANCEL_PATIENCE) {
            let message = "the migration does not end; the guest goes on";
            return Err(refuse("migration.active", message));
        }
        // The migration may have been past its commit: then the guest is no longer ours.
        let (state, machine) = {
            let core = self.lock();
            (core.state, core.machine.clone())
        };
        if matches!(state, VmState::HandoverUnknown | VmState::Migrated) {
            return Err(wrong_state(state));
        }
        if let Some(machine) = machine {
            stop_for_good(&machine);
        }
        self.end(VmState::Stopped, None);
        Ok(())
    }
}
