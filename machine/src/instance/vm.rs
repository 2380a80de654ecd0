//! The VM of this process as its control socket sees it.
//!
//! # States
//! `incoming → running | paused | failed`, `running ⇄ paused`, `running | paused → handover-unknown`,
//! `handover-unknown → running | paused | migrated`, and from any of them `stopped`, `migrated` or
//! `failed`, which are final. Only the thread that made a transition true records it. `handing-over` is
//! how `running` and `paused` are told while a migration holds the guest still.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use control::instance::{Ending, MigrationStatus, VmEnd, VmState, VmStatus};
use control::runtime_dir::VmDir;
use migration::MigrationId;
use migration::endpoint::Endpoint;
use migration::observation::{Observation, Side};
use migration::steering::Steering;
use migration::wire::control::Resolution;

use crate::events::GuestEvent;
use crate::events::observed;
use crate::instance::door::Door;
use crate::instance::ended_jobs::EndedJobs;
use crate::instance::running_move::RunningMove;
use crate::machine::Machine;
use crate::power::PauseReason;
use crate::threads::{self, ThreadKind};

/// How long the guest's last output may take to the console, which never blocks.
const LAST_OUTPUT: Duration = Duration::from_secs(10);
/// How long the migration of a guest that has ended may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);
/// How long whoever asks waits for everything to be free of a VM that has ended.
const TELL_PATIENCE: Duration = Duration::from_secs(30);

/// One VM and what this process knows of it.
pub(crate) struct VmInstance {
    pub(crate) dir: VmDir,
    began: Instant,
    core: Mutex<Core>,
    pub(crate) changed: Condvar,
}

pub(crate) struct Core {
    pub(crate) state: VmState,
    pub(crate) machine: Option<Arc<Machine>>,
    pub(crate) migration: Option<Migration>,
    pub(super) disk_moves: Vec<RunningMove>,
    pub(super) ended_jobs: EndedJobs,
    /// Jobs that have begun, and which of them `migration` was.
    pub(super) begun_jobs: u64,
    pub(super) migration_began: u64,
    /// The VM is being ended by force.
    pub(crate) stopping: bool,
    /// Who asked for the guest's end, while it is awaited.
    pub(crate) asked: Option<String>,
    /// CPUs and bytes of RAM of the guest that is, or was, here.
    size: Option<(u32, u64)>,
    /// Migrations that failed and left the VM waiting, and why the last did.
    pub(super) failed_migrations: u32,
    last_failure: Option<Observation>,
    listen: Option<String>,
    pub(super) door: Option<Arc<Door>>,
    error: Option<Observation>,
    end: Option<VmEnd>,
    /// When it came to that end, and its uptime with it.
    ended_at: Option<Instant>,
    /// How the guest ended while nobody knew whose it was.
    meanwhile: Option<(Ending, Option<Observation>)>,
    pub(super) farewell: Farewell,
}

/// How far a VM has come that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It has not ended, or its disks are still claimed.
    Pending,
    /// The disks are free: it can be taken leave of.
    Leaves,
    /// All is free, and everybody may know.
    Told,
}

/// The migration that runs, or the last one.
pub(crate) struct Migration {
    /// Of a guest that leaves; of one that comes in, the control knows it once the source has told.
    pub(crate) id: Option<MigrationId>,
    pub(crate) to: Option<Endpoint>,
    pub(crate) steering: Arc<Steering>,
    pub(crate) stage: Stage,
    /// What the destination answered when it was asked who has the guest.
    pub(crate) resolution: Option<Resolution>,
    /// Why its engine ended without an outcome.
    pub(crate) broken: Option<Observation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It runs.
    Active,
    /// The destination is being asked who runs the guest.
    Resolving,
    /// Nothing is under way.
    Ended,
}

pub(crate) fn refuse(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Source, id, message)
}

impl VmInstance {
    pub(crate) fn new(dir: &VmDir, state: VmState) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.clone(),
            began: Instant::now(),
            core: Mutex::new(Core {
                state,
                machine: None,
                migration: None,
                disk_moves: Vec::new(),
                ended_jobs: EndedJobs::default(),
                begun_jobs: 0,
                migration_began: 0,
                stopping: false,
                asked: None,
                size: None,
                failed_migrations: 0,
                last_failure: None,
                listen: None,
                door: None,
                error: None,
                end: None,
                ended_at: None,
                meanwhile: None,
                farewell: Farewell::Pending,
            }),
            changed: Condvar::new(),
        })
    }

    /// Where a guest, or a question about it, may come in; the door is closed when the VM ends.
    pub(crate) fn listens_at(&self, address: String, door: Arc<Door>) {
        let mut core = self.lock();
        core.listen = Some(address);
        core.door = Some(door);
    }

    /// Shows the migration that may come in, or comes, in the status.
    pub(crate) fn takes_in(&self, steering: Arc<Steering>) {
        let mut core = self.lock();
        if core.stopping {
            steering.cancel();
        }
        core.begin_migration(Migration {
            id: None,
            to: None,
            steering,
            stage: Stage::Active,
            resolution: None,
            broken: None,
        });
    }

    /// A migration failed, and the VM waits for the next.
    pub(crate) fn waits_on(&self, why: Option<Observation>) {
        let mut core = self.lock();
        core.failed_migrations = core.failed_migrations.saturating_add(1);
        core.last_failure = why;
        self.changed.notify_all();
    }

    /// The machine now belongs to this VM and runs, or stands still for its user.
    ///
    /// The guest may have ended already: then the VM has its final state, or is about to get it.
    pub(crate) fn owns(&self, machine: &Arc<Machine>) {
        {
            let mut core = self.lock();
            core.size = Some((machine.spec().cpus(), machine.spec().memory));
            if !core.state.is_final() {
                core.state = running_state(machine);
                core.machine = Some(machine.clone());
            }
            // What failed before is of no interest any more.
            (core.failed_migrations, core.last_failure) = (0, None);
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
    /// of the destination can end. The disks are free when it can be heard of.
    pub(crate) fn end(&self, how: Ending, error: Option<Observation>) {
        let machine = {
            let mut core = self.lock();
            // Nobody moves the guest of a VM that has ended; whoever waits for that need not.
            if let Some(migration) = &mut core.migration {
                migration.stage = Stage::Ended;
            }
            self.changed.notify_all();
            if core.state.is_final() {
                return;
            }
            if core.state == VmState::HandoverUnknown {
                core.meanwhile = Some((how, error));
                return;
            }
            let state = match error {
                Some(_) => VmState::Failed,
                None => VmState::Stopped,
            };
            core.finish(state, how);
            core.error = error;
            core.machine.take()
        };
        if let Some(machine) = &machine {
            machine.devices().claims.release();
        }
        self.lock().farewell = Farewell::Leaves;
        self.changed.notify_all();
        // Freeing a large guest's memory takes its time: nobody waits for it.
        drop(machine);
    }

    /// Follows the guest's own end on a thread of its own.
    pub(crate) fn follow(self: &Arc<Self>, events: Receiver<GuestEvent>) -> std::io::Result<()> {
        let instance = self.clone();
        thread::Builder::new()
            .name("guest-end".into())
            .spawn(move || {
                threads::begin(ThreadKind::Caretaker);
                let Ok(event) = events.recv() else { return };
                let (machine, steering) = {
                    let core = instance.lock();
                    (
                        core.machine.clone(),
                        core.active().map(|m| m.steering.clone()),
                    )
                };
                if let Some(machine) = &machine {
                    stop_for_good(machine);
                }
                // What is left cannot be migrated; the engine notices by itself at the latest when it
                // stops the guest.
                if let Some(steering) = steering {
                    steering.guest_ended(observed(&event));
                    instance.wait_idle(CANCEL_PATIENCE);
                }
                if !instance.end_disk_moves(&observed(&event), CANCEL_PATIENCE) {
                    tracing::warn!("a disk that was being moved is not given up in time");
                }
                // One that has only just come in was not there before.
                let late = instance.lock().machine.clone();
                if let (None, Some(machine)) = (machine, late) {
                    stop_for_good(&machine);
                }
                match event {
                    GuestEvent::Reset => {
                        tracing::info!("the guest asked for a reset, which ends it");
                        instance.end(Ending::Reset, None);
                    }
                    GuestEvent::PowerOff => instance.end(Ending::PoweredOff, None),
                    GuestEvent::Failed(why) => {
                        tracing::error!(id = why.id, "the guest failed: {why}");
                        instance.end(Ending::Crashed, Some(why));
                    }
                }
            })?;
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn machine(&self) -> Result<Arc<Machine>, Observation> {
        let core = self.lock();
        match (&core.machine, core.state) {
            (Some(machine), VmState::Running | VmState::Paused) => Ok(machine.clone()),
            (_, state) => Err(wrong_state(state)),
        }
    }

    /// Blocks until no migration is active, or the VM has ended; whether that came true in time.
    pub(crate) fn wait_idle(&self, patience: Duration) -> bool {
        let is_busy = |core: &Core| core.active().is_some() && !core.state.is_final();
        !is_busy(&self.wait_while(patience, is_busy))
    }

    /// What is known, as soon as it may be told.
    pub(super) fn told(&self) -> MutexGuard<'_, Core> {
        self.wait_while(TELL_PATIENCE, |core| {
            core.state.is_final() && core.farewell != Farewell::Told
        })
    }

    /// Waits as long as `unmet` says so, at most for `patience`: what holds then.
    pub(super) fn wait_while(
        &self,
        patience: Duration,
        unmet: impl Fn(&Core) -> bool,
    ) -> MutexGuard<'_, Core> {
        self.changed
            .wait_timeout_while(self.lock(), patience, |core| unmet(core))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Waits until it may be told that the VM has ended.
    pub(crate) fn await_told(&self) {
        drop(self.told());
    }

    pub(super) fn status_of(&self, core: &Core) -> VmStatus {
        let (cpus, memory_bytes) = core.size.unwrap_or_default();
        VmStatus {
            name: self.dir.name(),
            state: core.shown(),
            pid: std::process::id(),
            cpus,
            memory_bytes,
            disks: core.disks(),
            uptime_ms: core.uptime(self.began).as_millis() as u64,
            listen: core.listen.clone(),
            migration: core.migration.as_ref().map(|m| MigrationStatus {
                id: m.id.or_else(|| m.steering.id()).map(|id| id.to_string()),
                to: m.to.as_ref().map(ToString::to_string),
                last: m.steering.last_event(),
                resolution: m.resolution,
            }),
            error: core.error.clone(),
            end: core.end.clone(),
            failed_migrations: core.failed_migrations,
            last_failure: core.last_failure.clone(),
        }
    }
}

impl Core {
    /// Enters a final state.
    fn finish(&mut self, state: VmState, how: Ending) {
        let asked = self.asked.take();
        // What its user asked for is why a guest powers off, or a wait for one ends.
        let how = match (how, &asked) {
            (Ending::PoweredOff | Ending::NotReceived, Some(_)) => Ending::Stopped,
            (how, _) => how,
        };
        let by = asked.filter(|_| how == Ending::Stopped);
        self.end = Some(VmEnd {
            by,
            ..VmEnd::new(how)
        });
        self.ended_at = Some(Instant::now());
        self.state = state;
    }

    /// Since it began, until it ended.
    fn uptime(&self, began: Instant) -> Duration {
        self.ended_at.unwrap_or_else(Instant::now) - began
    }

    /// How the guest ended before its hand-over was resolved.
    pub(crate) fn take_meanwhile(&mut self) -> Option<(Ending, Option<Observation>)> {
        self.meanwhile.take()
    }

    /// The guest has moved away, and the disks with it.
    pub(crate) fn finish_migrated(&mut self) {
        let to = self.migration.as_ref().and_then(|m| m.to.as_ref());
        let to = to.map(ToString::to_string);
        self.finish(VmState::Migrated, Ending::Migrated);
        if let Some(end) = &mut self.end {
            end.to = to;
        }
        self.farewell = Farewell::Leaves;
    }

    /// The state as it is told: a guest that its migration has stopped runs here no longer, and may run
    /// at the destination already.
    pub(super) fn shown(&self) -> VmState {
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

    pub(crate) fn active(&self) -> Option<&Migration> {
        self.migration.as_ref().filter(|m| m.stage == Stage::Active)
    }
}

/// Stops the machine of a guest that is over.
pub(crate) fn stop_for_good(machine: &Machine) {
    if let Err(e) = machine.pause(PauseReason::Ended) {
        tracing::warn!(error = %e, "devices did not drain at the guest's end");
    }
    hear_out(machine);
}

/// Waits for the last that a guest printed here; before its VM gets a final state, after which the process
/// may be gone, and that with it.
pub(crate) fn hear_out(machine: &Machine) {
    if !machine.devices().drain_output(LAST_OUTPUT) {
        tracing::warn!("the last that the guest printed has not reached the console in time");
    }
}

/// What a machine that is here does.
pub(crate) fn running_state(machine: &Machine) -> VmState {
    if machine.paused_for(PauseReason::User) {
        VmState::Paused
    } else {
        VmState::Running
    }
}

pub(crate) fn wrong_state(state: VmState) -> Observation {
    let message = match state {
        VmState::Incoming => "the guest has not come in yet",
        VmState::HandingOver => {
            "the guest is being handed over: ask the host that has it when that is done"
        }
        VmState::HandoverUnknown => {
            "it is not known whether the destination runs the guest; it is asked until it answers, and at \
             once by `vmm migrate NAME --resolve`"
        }
        VmState::Migrated => "the guest has moved to another host",
        VmState::Stopped => "the guest has ended",
        VmState::Failed => "the guest has failed",
        VmState::Running => "the guest runs",
        VmState::Paused => "the guest is paused",
    };
    refuse("vm.wrong-state", message)
}
