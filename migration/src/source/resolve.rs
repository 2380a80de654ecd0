//! What became of a guest whose hand-over is in doubt.

use std::time::Duration;

use super::committed::let_go;
use super::connect::{NO_TOKEN, say_hello};
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{Handover, Journal, SourceRecord};
use crate::transport::{Connect, Patience};
use crate::vm::SourceVm;
use crate::wire::control::{Answer, Message, Resolution};
use crate::wire::conversation::Conversation;
use crate::wire::hello::{Hello, Role};

/// Asks the destination at `to` whether it committed migration `id`. It answers the same for ever:
/// one that never committed records that it never will before it says so. Only the host that the
/// guest was given to, as the source's `journal` says, is believed.
///
/// # Errors
/// When it cannot be reached or does not answer, is another host, or there is no record of who it
/// is; then nothing is known and the guest stays paused.
pub fn resolve(
    to: &dyn Connect,
    id: MigrationId,
    journal: &dyn Journal,
) -> Result<Resolution, Error> {
    let record = journal.recorded(id)?.ok_or(Error::NoRecord { id })?;
    resolve_within(to, id, record.host, Duration::from_secs(10))
}

pub(super) fn resolve_within(
    to: &dyn Connect,
    id: MigrationId,
    expected: Option<HostId>,
    timeout: Duration,
) -> Result<Resolution, Error> {
    let patience = Patience {
        timeout,
        give_up: &|| false,
    };
    let connection = say_hello(to, patience, &Hello::new(Role::Resolve, id, NO_TOKEN))?;
    let mut conversation = Conversation::of_question();
    let answer = Message::receive_in_turn(&*connection, timeout, |kind| conversation.hear(kind))?;
    match answer {
        Message::Resolution(Answer { resolution, host }) => match expected {
            Some(expected) if host != Some(expected) => Err(Error::WrongHost {
                address: to.address(),
                expected,
                answered: host,
            }),
            _ => Ok(resolution),
        },
        Message::Failure(observation) => Err(Error::Peer(observation)),
        other => Err(other.unexpected("resolution")),
    }
}

/// Acts on the answer to [`resolve`] for a guest that [`crate::Outcome::HandoverUnknown`] left
/// paused: releases it, or makes it what it was before the migration.
///
/// # Errors
/// When the VM cannot do it or the journal cannot record it. The first error is returned after
/// everything has been tried.
pub fn settle(
    vm: &dyn SourceVm,
    id: MigrationId,
    resolution: Resolution,
    journal: &dyn Journal,
) -> Result<(), Error> {
    let recorded = journal.recorded(id)?.ok_or(Error::NoRecord { id });
    let record = |handover| {
        let record = SourceRecord {
            handover,
            ..recorded?
        };
        Ok(journal.record(id, &record)?)
    };
    match resolution {
        Resolution::Ran => {
            let_go(vm);
            record(Handover::Gone)
        }
        Resolution::NeverRan => {
            let resumed = vm.resume().map_err(Error::vm("resume the guest"));
            let stopped = vm.stop_dirty_log().map_err(Error::vm("stop the dirty log"));
            let untracked = vm
                .untrack_disks()
                .map_err(Error::vm("stop the tracking of disks"));
            let unmarked = vm
                .unmark_disks()
                .map_err(Error::vm("take the marks of the disks away"));
            let reclaimed = vm.reclaim_disks().map_err(Error::vm("reclaim the disks"));
            // It is here, whatever else was not undone.
            let recorded = record(Handover::Kept);
            resumed
                .and(stopped)
                .and(untracked)
                .and(unmarked)
                .and(reclaimed)
                .and(recorded)
        }
    }
}
