//! The VM as it leaves this host: its migrations, one at a time, and what becomes of it afterwards.
//!
//! Nothing here lets a guest run that may run elsewhere. A migration begins, and a hand-over is
//! resolved, only for a state that is looked at under the same lock that keeps every other one out;
//! and a guest is let go on only by [`PauseReason::Migration`] going away, which an outcome that left
//! it here, or the destination's own answer, alone takes away.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;

use migration::address::Address;
use migration::control::Control;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::source;
use migration::transport::socket::SocketConnect;
use migration::wire::control::Resolution;
use migration::{MigrationId, Outcome};

use super::Machine;
use super::instance::{
    Migration, Stage, VmInstance, hear_out, is_final, refuse, running_state, wrong_state,
};
use super::power::PauseReason;
use super::source::MachineSource;
use crate::instance::{MigrateRequest, VmState};
use crate::sandbox::{self, Kind};

impl VmInstance {
    /// Begins a migration on a thread of its own and returns its identifier.
    pub(super) fn leave(self: &Arc<Self>, request: MigrateRequest) -> Result<String, Observation> {
        let MigrateRequest {
            to,
            limits,
            streams,
            timeout,
            on_timeout,
            verify,
            insecure,
            plan,
        } = request;
        let to: Address = to.parse().map_err(|e: migration::address::AddressError| {
            refuse("usage.address", e.to_string())
        })?;
        if !to.is_loopback() && !insecure {
            return Err(refuse(
                "usage.insecure",
                "plain TCP beyond this host needs --insecure: guest memory is readable on the wire",
            ));
        }
        let journal = FileJournal::open(self.dir.migrations())
            .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        let id = MigrationId::random()
            .map_err(|e| Observation::from_error(Side::Source, "migration.id", &e))?;
        let connector = SocketConnect::new(to.clone())
            .map_err(|e| Observation::from_error(Side::Source, "usage.address", &e))?;
        let control = Control::new();
        let machine = self.begin(Migration {
            id: Some(id),
            to: Some(to),
            control: control.clone(),
            stage: Stage::Active,
        })?;
        let options = source::Options {
            streams,
            limits,
            timeout,
            on_timeout,
            verify,
            plan,
            ..source::Options::new(id)
        };
        let instance = self.clone();
        control.before_end(move |outcome| {
            // Who hears that the guest is still here may ask for the next move at once. When it has left,
            // this process is about to end: that is heard first.
            if !matches!(outcome, Outcome::Completed(_)) {
                instance.settle(Some(outcome));
            }
        });
        let instance = self.clone();
        let spawned = thread::Builder::new()
            .name("migration".into())
            .spawn(move || {
                sandbox::begin(Kind::Migration);
                let vm = MachineSource::new(machine, &instance.dir.name());
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                    source::migrate(&vm, &connector, &options, &control, &journal)
                }));
                drop(vm);
                match outcome {
                    Ok(completed @ Outcome::Completed(_)) => instance.settle(Some(&completed)),
                    Ok(_) => {}
                    Err(_) => instance.settle(None),
                }
            });
        if let Err(e) = spawned {
            self.lock().migration = None;
            return Err(Observation::from_error(
                Side::Source,
                "migration.thread",
                &e,
            ));
        }
        Ok(id.to_string())
    }

    /// Makes `migration` the one that runs, if there may be one: the machine that it moves.
    fn begin(&self, migration: Migration) -> Result<Arc<Machine>, Observation> {
        let mut core = self.lock();
        if core.active().is_some() {
            return Err(refuse(
                "migration.active",
                "a migration of this VM is already running",
            ));
        }
        let machine = match (&core.machine, core.state) {
            (Some(machine), VmState::Running | VmState::Paused) => machine.clone(),
            (_, state) => return Err(wrong_state(state)),
        };
        if core.stopping || machine.ended() {
            return Err(wrong_state(VmState::Stopped));
        }
        core.migration = Some(migration);
        Ok(machine)
    }

    /// Records how the migration ended: the engine has already acted on the guest. Without an
    /// outcome the engine itself failed, and what it told the destination is not known.
    pub(super) fn settle(&self, outcome: Option<&Outcome>) {
        let machine = self.lock().machine.clone();
        if let (Some(Outcome::Completed(_)), Some(machine)) = (outcome, &machine) {
            hear_out(machine);
        }
        let mut core = self.lock();
        let mut gone = None;
        if !is_final(core.state) {
            match (outcome, &machine) {
                (Some(Outcome::Completed(_)), _) => {
                    core.finish(VmState::Migrated);
                    gone = core.machine.take();
                }
                (Some(Outcome::HandoverUnknown(_)), _) => core.state = VmState::HandoverUnknown,
                (Some(_), Some(machine)) => core.state = running_state(machine),
                (None, Some(machine)) if machine.paused_for(PauseReason::Migration) => {
                    core.state = VmState::HandoverUnknown;
                }
                (_, _) => {}
            }
        }
        if let Some(migration) = &mut core.migration {
            migration.stage = Stage::Ended;
            if outcome.is_none() {
                // Whoever waits for its last event would wait for ever.
                migration.control = Control::new();
            }
        }
        self.changed.notify_all();
        drop(core);
        // Freeing a large guest's memory takes its time: nobody who asks for the status waits for it.
        drop(gone);
        drop(machine);
    }

    /// Asks the destination whether it ran the guest, and acts on the answer: the new state.
    pub(super) fn settle_handover(&self) -> Result<VmState, Observation> {
        let (id, to, machine) = {
            let mut core = self.lock();
            if core.state != VmState::HandoverUnknown {
                return Err(refuse("migration.resolved", "nothing is to be resolved"));
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
                    // Two that resolve would act twice, the later one perhaps in the middle of what
                    // the guest does after the first.
                    if *stage == Stage::Resolving {
                        let message = "the destination is being asked already";
                        return Err(refuse("migration.active", message));
                    }
                    *stage = Stage::Resolving;
                    (*id, to.clone(), machine)
                }
                _ => return Err(refuse("migration.none", "there was no migration")),
            }
        };
        let acted = self.ask_and_act(id, to, &machine);
        if matches!(acted, Ok(Resolution::Ran)) {
            hear_out(&machine);
        }
        let mut core = self.lock();
        if let Some(migration) = &mut core.migration {
            migration.stage = Stage::Ended;
        }
        let mut gone = None;
        match &acted {
            Ok(Resolution::Ran) => {
                core.finish(VmState::Migrated);
                gone = core.machine.take();
            }
            // Its end was told while nobody knew whose it was.
            Ok(Resolution::NeverRan) if machine.ended() => core.finish(VmState::Stopped),
            Ok(Resolution::NeverRan) => core.state = running_state(&machine),
            Err(_) => {}
        }
        let state = core.state;
        self.changed.notify_all();
        drop(core);
        drop(gone);
        acted.map(|_| state)
    }

    fn ask_and_act(
        &self,
        id: MigrationId,
        to: Address,
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
