//! The end of a VM by force: without asking the guest, and whatever hangs.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use control::instance::{Ending, VmState};
use migration::steering::Steering;

use crate::instance::vm::{VmInstance, refuse, stop_for_good, wrong_state};
use crate::machine::Machine;
use crate::threads::{self, ThreadKind};
use migration::observation::Observation;

/// How long a migration may take to see that its guest is being ended, or that it is not.
const MIGRATION_END: Duration = Duration::from_millis(1500);
/// How long the machine may take to stand still, its disks flushed and its last output shown. Nobody goes
/// on with this guest, so that what its storage does not take is lost anyway.
const ORDERLY_END: Duration = Duration::from_millis(1500);

/// What becomes of the migration of a guest that is ended by force.
enum Moving {
    /// There is none.
    No,
    /// It can no longer commit.
    GivenUp,
    /// It commits, or has.
    Commits,
}

impl VmInstance {
    /// Ends the guest without asking it, unless it is, or may be, somebody else's.
    pub(crate) fn stop_now(&self, by: String) -> Result<(), Observation> {
        let (state, steering) = {
            let mut core = self.lock();
            if matches!(core.state, VmState::HandoverUnknown | VmState::Migrated) {
                return Err(wrong_state(core.state));
            }
            // A migration that began from here on would carry away what is being ended.
            core.stopping = true;
            core.asked = Some(by);
            (core.state, core.active().map(|m| m.steering.clone()))
        };
        let moving = steering.map_or(Moving::No, |steering| give_up(&steering, state));
        let stopped = self.stop_after(&moving);
        if stopped.is_err() {
            let mut core = self.lock();
            core.stopping = false;
            core.asked = None;
        }
        stopped
    }

    fn stop_after(&self, moving: &Moving) -> Result<(), Observation> {
        let idle = matches!(moving, Moving::No) || self.wait_idle(MIGRATION_END);
        match (idle, moving) {
            (true, _) => {}
            // What it waits for does not come. The destination sees it gone when the process is.
            (false, Moving::No | Moving::GivenUp) => {
                tracing::warn!("a migration that was given up does not end");
            }
            (false, Moving::Commits) => {
                return Err(refuse(
                    "migration.committing",
                    "the guest is being handed over: ask again when it is known who has it",
                ));
            }
        }
        let why = refuse("vm.stopped", "its user ended the guest");
        if !self.end_disk_moves(&why, MIGRATION_END) {
            // What it waits for does not come; the record says which image is the disk.
            tracing::warn!("a move of a disk that was given up does not end");
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
            stop_in_time(machine);
        }
        self.end(Ending::Stopped, None);
        Ok(())
    }
}

fn give_up(steering: &Steering, state: VmState) -> Moving {
    let given_up = match state {
        // There is no guest yet: who sends it keeps it.
        VmState::Incoming => steering.cancel(),
        _ => steering.guest_ended(refuse("vm.stopped", "its user ended the guest")),
    };
    if given_up {
        Moving::GivenUp
    } else {
        Moving::Commits
    }
}

/// Stops the machine for good; one that does not come to a stand is left to the end of the process.
fn stop_in_time(machine: Arc<Machine>) {
    let (done, stood) = channel();
    let stops = thread::Builder::new().name("stop".into()).spawn(move || {
        threads::begin(ThreadKind::Caretaker);
        stop_for_good(&machine);
        // Nobody may be waiting any more.
        let _ = done.send(());
    });
    let stands = stops.is_ok() && stood.recv_timeout(ORDERLY_END).is_ok();
    if !stands {
        tracing::warn!("the machine does not stand still; it ends with its process");
    }
}
