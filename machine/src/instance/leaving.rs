//! The VM as it leaves this host: its migrations, one at a time, and what becomes of it afterwards.
//!
//! Nothing here lets a guest run that may run elsewhere. A migration begins, and a hand-over is
//! resolved, only for a state that is looked at under the same lock that keeps every other one out;
//! and a guest is let go on only by [`PauseReason::Migration`] going away, which an outcome that left
//! it here, or the destination's own answer, alone takes away.

use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use control::instance::VmState;
use control::passed::PassedFile;
use migration::disk_modes::{self, DiskMode, DiskModes};
use migration::endpoint::Endpoint;
use migration::journal::{FileJournal, Journal};
use migration::observation::{Observation, Side};
use migration::request::MigrateRequest;
use migration::source;
use migration::steering::Steering;
use migration::transport::socket::SocketConnect;
use migration::wire::control::Resolution;
use migration::{MigrationId, Outcome};

use crate::instance::later_disks::check_later;
use crate::instance::vm::{
    Core, Migration, Stage, VmInstance, hear_out, refuse, running_state, wrong_state,
};
use crate::machine::Machine;
use crate::moving::source::MachineSource;
use crate::power::PauseReason;
use crate::threads::{self, ThreadKind};

/// Before a destination that did not answer is asked the first time.
const ASK_FIRST: Duration = Duration::from_millis(250);
/// It is asked at least so often, as soon as it has answered, or could not be reached, the time before.
const ASK_AT_LEAST: Duration = Duration::from_secs(5);

impl VmInstance {
    /// Begins a migration on a thread of its own and returns its identifier.
    pub(crate) fn leave(
        self: &Arc<Self>,
        request: MigrateRequest,
        overlays: Vec<Vec<PassedFile>>,
    ) -> Result<String, Observation> {
        let to = request.endpoint()?;
        let journal = FileJournal::open(self.dir.migrations())
            .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        let id = MigrationId::random()
            .map_err(|e| Observation::from_error(Side::Source, "migration.id", &e))?;
        let connector = SocketConnect::new(to.clone())
            .map_err(|e| Observation::from_error(Side::Source, "usage.address", &e))?;
        let steering = Steering::new();
        // From now on they are told and changed, whenever the engine comes to begin.
        steering.set_limits(request.limits());
        let migration = Migration {
            id: Some(id),
            to: Some(to),
            steering: steering.clone(),
            stage: Stage::Active,
            resolution: None,
            broken: None,
        };
        let (machine, modes) = self.begin(migration, &request)?;
        let ways = match self.ways(&machine, &modes, &request, overlays) {
            Ok(ways) => ways,
            Err(why) => {
                self.lock().migration = None;
                return Err(why);
            }
        };
        let served = request.served.iter().map(|served| served.disk.clone());
        let served = served.collect();
        let options = source::Options::new(id, request);
        let instance = self.clone();
        steering.before_end(move |outcome| {
            // Who hears that the guest is still here may ask for the next move at once; and who hears
            // that it has left, may have it back: under its name, and where this VM listened.
            instance.settle(Some(outcome));
            instance.await_told();
        });
        let instance = self.clone();
        let spawned = thread::Builder::new()
            .name("migration".into())
            .spawn(move || {
                threads::begin(ThreadKind::Migration);
                let vm = MachineSource::new(machine, &instance.dir.name()).with_disks(
                    modes,
                    served,
                    ways,
                    journal.identity(),
                );
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                    source::migrate(&vm, &connector, &options, &steering, &journal)
                }));
                drop(vm);
                match outcome {
                    Ok(Outcome::HandoverUnknown(_)) => instance.heal(),
                    Ok(_) => {}
                    Err(_) => {
                        instance.settle(None);
                        instance.heal();
                    }
                }
            });
        if let Err(e) = spawned {
            let mut core = self.lock();
            core.migration = None;
            if let Some(machine) = &core.machine {
                machine.devices().disks.stay();
            }
            drop(core);
            return Err(Observation::from_error(
                Side::Source,
                "migration.thread",
                &e,
            ));
        }
        Ok(id.to_string())
    }

    /// Makes `migration` the one that runs, if there may be one: the machine that it moves, and how its disks move.
    fn begin(
        &self,
        migration: Migration,
        request: &MigrateRequest,
    ) -> Result<(Arc<Machine>, DiskModes), Observation> {
        let mut core = self.lock();
        if core.active().is_some() {
            return Err(refuse(
                "migration.active",
                "a migration of this VM is already running",
            ));
        }
        core.no_disk_moves(&self.dir.name())?;
        let machine = match (&core.machine, core.state) {
            (Some(machine), VmState::Running | VmState::Paused) => machine.clone(),
            (_, state) => return Err(wrong_state(state)),
        };
        if core.stopping || machine.ended() {
            return Err(wrong_state(VmState::Stopped));
        }
        if let Some(id) = machine.devices().disks.away().first() {
            let message = format!(
                "disk {id} is in an overlay, from which a migration that failed could not bring it back: when the guest has \
                 ended, `vmm run` brings both together again"
            );
            return Err(refuse("disk.in-overlay", message));
        }
        let all = machine.spec().disks.iter().map(|disk| disk.id.as_str());
        let modes = disk_modes::modes(&request.disks, all)?;
        check_later(request, &modes, &machine.spec().disks)?;
        let goes_later = |id: &str| {
            let mode = modes.iter().find(|(disk, _)| disk == id);
            mode.is_some_and(|(_, mode)| *mode == DiskMode::OnDemand)
        };
        machine.devices().disks.leave(goes_later)?;
        core.begin_migration(migration);
        Ok((machine, modes))
    }

    /// Records how the migration ended: the engine has already acted on the guest. Without an
    /// outcome the engine itself failed, and what it told the destination is not known.
    pub(crate) fn settle(&self, outcome: Option<&Outcome>) {
        let machine = self.lock().machine.clone();
        if let (Some(Outcome::Completed(_)), Some(machine)) = (outcome, &machine) {
            hear_out(machine);
        }
        let mut core = self.lock();
        let mut gone = None;
        if !core.state.is_final() {
            match (outcome, &machine) {
                (Some(Outcome::Completed(_)), _) => {
                    core.finish_migrated();
                    gone = core.machine.take();
                }
                (Some(Outcome::HandoverUnknown(_)), _) => core.state = VmState::HandoverUnknown,
                (Some(_), Some(machine)) => {
                    machine.devices().disks.stay();
                    machine.leave_to_user();
                    core.state = running_state(machine);
                }
                (None, Some(machine)) if machine.paused_for(PauseReason::Migration) => {
                    core.state = VmState::HandoverUnknown;
                }
                (None, Some(machine)) => machine.devices().disks.stay(),
                (_, _) => {}
            }
        }
        if let Some(migration) = &mut core.migration {
            migration.stage = Stage::Ended;
            if outcome.is_none() {
                // Whoever waits for its last event would wait for ever.
                migration.steering = Steering::new();
                migration.broken =
                    Some(refuse("migration.worker", "the engine ended unexpectedly"));
            }
        }
        self.changed.notify_all();
        drop(core);
        // Freeing a large guest's memory takes its time: nobody who asks for the status waits for it.
        drop(gone);
        drop(machine);
    }

    /// Asks the destination until it has answered whether it ran the guest, and acts on the answer. Whoever
    /// asks beside finds the answer too.
    fn heal(self: &Arc<Self>) {
        let mut pause = ASK_FIRST;
        let mut told = String::new();
        loop {
            // The answer may come to somebody else meanwhile.
            if self.state_after(VmState::HandoverUnknown, pause) != VmState::HandoverUnknown {
                return;
            }
            match self.settle_handover(Vec::new()) {
                Ok(_) => return,
                // What stays the same is told once.
                Err(why) if why.root().id == told => {}
                Err(why) => {
                    tracing::warn!(id = why.id, "the destination does not answer yet: {why}");
                    told.clone_from(&why.root().id);
                }
            }
            pause = (2 * pause).min(ASK_AT_LEAST);
        }
    }

    /// Asks the destination whether it ran the guest, and acts on the answer: the new state.
    /// `sockets` are what its name stands for by now; where empty, what it stood for before.
    pub(crate) fn settle_handover(&self, sockets: Vec<SocketAddr>) -> Result<VmState, Observation> {
        let Resolving {
            id, to, machine, ..
        } = &match self.begin_resolving(sockets)? {
            Begun::Resolving(resolving) => resolving,
            Begun::Known(state) => return Ok(state),
        };
        let acted = self.ask_and_act(*id, to.clone(), machine);
        if matches!(acted, Ok(Resolution::Ran)) {
            hear_out(machine);
        }
        let mut core = self.lock();
        if let (Ok(resolution), Some(migration)) = (&acted, &mut core.migration) {
            tracing::info!(%id, ?resolution, "the destination answered");
            migration.resolution = Some(*resolution);
        }
        let mut gone = None;
        match &acted {
            Ok(Resolution::Ran) => {
                core.finish_migrated();
                gone = core.machine.take();
            }
            Ok(Resolution::NeverRan) => {
                machine.devices().disks.stay();
                core.state = running_state(machine);
            }
            Err(_) => {}
        }
        let meanwhile = match &acted {
            Ok(Resolution::NeverRan) => core.take_meanwhile(),
            _ => None,
        };
        self.changed.notify_all();
        drop(core);
        drop(gone);
        if let Some((how, why)) = meanwhile {
            self.end(how, why);
        }
        let state = self.lock().state;
        acted.map(|_| state)
    }

    /// Makes this caller the one that asks, once nobody else does: two would act twice, the later one
    /// perhaps in the middle of what the guest does after the first.
    fn begin_resolving(&self, sockets: Vec<SocketAddr>) -> Result<Begun<'_>, Observation> {
        let mut core = self.lock();
        if core.state != VmState::HandoverUnknown {
            let migration = core.migration.as_ref();
            return match migration.and_then(|migration| migration.resolution) {
                Some(_) => Ok(Begun::Known(core.state)),
                None => Err(refuse("migration.resolved", "nothing is to be resolved")),
            };
        }
        let asks = |core: &mut Core| {
            let stage = core.migration.as_ref().map(|migration| migration.stage);
            stage == Some(Stage::Resolving)
        };
        core = self
            .changed
            .wait_while(core, asks)
            .unwrap_or_else(PoisonError::into_inner);
        if core.state != VmState::HandoverUnknown {
            return Ok(Begun::Known(core.state));
        }
        let machine = core.machine.clone();
        match (&mut core.migration, machine) {
            (
                Some(Migration {
                    id: Some(id),
                    to: Some(to),
                    stage,
                    ..
                }),
                Some(machine),
            ) => {
                *stage = Stage::Resolving;
                if let Ok(anew) = Endpoint::resolved(to.address().clone(), sockets) {
                    *to = anew;
                }
                Ok(Begun::Resolving(Resolving {
                    id: *id,
                    to: to.clone(),
                    machine,
                    instance: self,
                }))
            }
            _ => Err(refuse("migration.none", "there was no migration")),
        }
    }

    fn ask_and_act(
        &self,
        id: MigrationId,
        to: Endpoint,
        machine: &Arc<Machine>,
    ) -> Result<Resolution, Observation> {
        let journal = FileJournal::open(self.dir.migrations())
            .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        let connector = SocketConnect::new(to)
            .map_err(|e| Observation::from_error(Side::Source, "usage.address", &e))?;
        let resolution =
            source::resolve(&connector, id, &journal).map_err(|e| e.observe(Side::Source))?;
        let vm = MachineSource::new(machine.clone(), &self.dir.name());
        if let Err(e) = source::settle(&vm, id, resolution, &journal) {
            // The answer stands all the same, and the guest is where the answer says.
            tracing::warn!(error = %e, "the answer could not be acted on completely");
        }
        Ok(resolution)
    }
}

/// What came of wanting to ask the destination.
enum Begun<'a> {
    /// This caller asks.
    Resolving(Resolving<'a>),
    /// Somebody else has asked, and has the answer: the state since.
    Known(VmState),
}

/// The destination is being asked; when this is dropped, it no longer is.
struct Resolving<'a> {
    id: MigrationId,
    to: Endpoint,
    machine: Arc<Machine>,
    instance: &'a VmInstance,
}

impl Drop for Resolving<'_> {
    fn drop(&mut self) {
        // Another migration may have begun since the guest goes on.
        if let Some(migration) = &mut self.instance.lock().migration
            && migration.stage == Stage::Resolving
        {
            migration.stage = Stage::Ended;
        }
        self.instance.changed.notify_all();
    }
}
