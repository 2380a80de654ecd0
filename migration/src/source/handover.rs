//! The two-step hand-over: ready, commit, and what to do when the answer is lost.

use std::thread;
use std::time::{Duration, Instant};

use super::options::Options;
use super::run::{End, Link, Run, Streams, milliseconds, unexpected};
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::{Observation, Side};
use crate::pages::{digest_text, full_digest};
use crate::progress::Verify;
use crate::raw::Ram;
use crate::transport::{Connect, Patience};
use crate::vm::SourceVm;
use crate::wire::KNOWS_LATE;
use crate::wire::control::{Answer, MAX_WARNINGS, Message, Resolution};
use crate::wire::conversation::Conversation;
use crate::wire::hello::{Hello, Role};

/// Pauses before each look for what has come for a guest that is gone.
const LATE: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(20),
];
/// Between two attempts to ask a destination that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);

impl Run<'_> {
    /// Waits until the destination has loaded everything, and compares the digests.
    pub(super) fn ready(&mut self, link: &Link, ram: &Ram, streams: &Streams) -> Result<(), Error> {
        let began = Instant::now();
        let ours = match self.options.request.verify {
            Verify::Off => None,
            Verify::Stream => Some(digest_text(
                streams.digests.iter().fold(0, |a, &b| a.wrapping_add(b)),
            )),
            // The destination hashes at the same time.
            Verify::Full => {
                let session = &*link.session;
                let digest = full_digest::of(ram, &|| session.is_stopped());
                Some(digest.ok_or_else(|| session.why_stopped(&link.notes))?)
            }
        };
        let hashing = full_digest::patience(self.options.request.verify, self.report.guest_bytes);
        let patience = self.options.prepare_timeout + hashing;
        let ready = match self.answer(link, "loading the state", patience)? {
            Message::Ready(ready) => ready,
            other => return Err(unexpected(&other, "ready")),
        };
        self.ready_at = Some(Instant::now());
        let load = ready.load_ms.clamp(0.0, 1e9);
        self.report.downtime.state_load = load;
        self.report.downtime.state_send = Some((milliseconds(began.elapsed()) - load).max(0.0));
        match (ours, ready.digest) {
            (None, _) => Ok(()),
            (Some(ours), Some(theirs)) if ours == theirs => {
                self.report.verified = true;
                Ok(())
            }
            (Some(ours), theirs) => Err(Error::DigestMismatch {
                ours,
                theirs: theirs.map_or_else(|| "none".into(), |t| t.chars().take(64).collect()),
            }),
        }
    }

    /// Records the decision, sends it, and waits until the guest runs at the destination.
    pub(super) fn commit(&mut self, link: &Link) -> Result<(), Error> {
        self.control.enter_commit()?;
        self.record(Handover::CommitSent)?;
        // From here on the commit may have arrived, even if sending it fails, and only what it answers
        // counts.
        self.undo.commit_sent = true;
        link.session.pages_complete();
        link.session.send(&Message::Commit)?;
        match self.answer(link, "committing", self.options.io_timeout)? {
            Message::Committed(committed) => self.report.warnings = committed.warnings,
            // It cannot run the guest, and has recorded that it never will; why comes next.
            Message::Resolution(Answer {
                resolution: Resolution::NeverRan,
                host,
            }) if host == self.host => {
                self.undo.commit_sent = false;
                return Err(
                    match self.answer(link, "committing", self.options.io_timeout) {
                        Ok(other) => unexpected(&other, "failure"),
                        Err(error) => error,
                    },
                );
            }
            other => return Err(unexpected(&other, "committed")),
        }
        self.gone();
        self.report.warnings.truncate(MAX_WARNINGS);
        for warning in self.report.warnings.clone() {
            self.control.warn(warning);
        }
        self.send_late(link);
        // The destination knows that already by its own start; it waits only for politeness.
        let _ = link.session.send(&Message::Finish);
        self.enter(crate::progress::Phase::Finish);
        self.vm.release();
        Ok(())
    }

    /// Sends after the guest what has come for it here since it was stopped. Networks need a moment
    /// until they send it all to the destination, and whoever sent it waits.
    fn send_late(&mut self, link: &Link) {
        if self.version < KNOWS_LATE {
            return;
        }
        for pause in LATE {
            thread::sleep(pause);
            match self.vm.late() {
                Some(late) if late.is_empty() => {}
                Some(late) => {
                    if link.session.send(&Message::Late(late)).is_err() {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    /// The guest runs at the destination: notes when, and that it is gone from here.
    fn gone(&mut self) {
        let now = Instant::now();
        self.report.total_ms = milliseconds(now - self.began);
        if let Some(ready_at) = self.ready_at {
            self.report.downtime.commit = milliseconds(now - ready_at);
        }
        if let Some(stopped_at) = self.stopped_at {
            self.report.downtime_ms = Some(milliseconds(now - stopped_at));
        }
        if let Err(error) = self.record(Handover::Gone) {
            // The destination's record decides; ours only saves a question.
            self.control.warn(error.observe(Side::Source));
        }
    }

    /// The answer to the commit was lost: asks the destination whether it runs the guest, for a
    /// while.
    pub(super) fn ask_after_loss(&mut self, error: Error) -> Result<End, Error> {
        self.control.warn(
            Observation::new(
                Side::Source,
                "migration.answer-lost",
                "the answer to the commit was lost, asking the destination",
            )
            .in_phase(self.phase.name())
            .caused_by(error.observe(Side::Source)),
        );
        let until = Instant::now() + self.options.resolve_for;
        let mut error = error;
        loop {
            let Options { id, io_timeout, .. } = *self.options;
            match resolve_within(self.to, id, self.host, io_timeout) {
                Ok(Resolution::Ran) => {
                    self.gone();
                    self.vm.release();
                    return Ok(End::Completed);
                }
                Ok(Resolution::NeverRan) => {
                    self.undo.commit_sent = false;
                    return Err(error);
                }
                Err(failed) => {
                    tracing::debug!("cannot resolve yet: {}", failed.observe(Side::Source));
                    // Says more than that the answer was lost.
                    if matches!(failed, Error::WrongHost { .. }) {
                        error = failed;
                    }
                }
            }
            if Instant::now() + ASK_AGAIN >= until {
                return Err(error);
            }
            thread::sleep(ASK_AGAIN.min(self.options.resolve_for));
        }
    }
}

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

fn resolve_within(
    to: &dyn Connect,
    id: MigrationId,
    expected: Option<HostId>,
    timeout: Duration,
) -> Result<Resolution, Error> {
    let connection = to
        .connect(Patience {
            timeout,
            give_up: &|| false,
        })
        .map_err(|source| Error::Connect {
            address: to.address(),
            source,
        })?;
    connection
        .set_io_timeout(timeout)
        .map_err(Error::link("setting up a connection"))?;
    let hello = Hello::new(Role::Resolve, id, [0; 16]);
    connection
        .send(&hello.encode(), &[])
        .map_err(Error::link("asking"))?;
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
        other => Err(unexpected(&other, "resolution")),
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
            vm.release();
            record(Handover::Gone)
        }
        Resolution::NeverRan => {
            let resumed = vm.resume().map_err(Error::vm("resume the guest"));
            let stopped = vm.stop_dirty_log().map_err(Error::vm("stop the dirty log"));
            let reclaimed = vm.reclaim_disks().map_err(Error::vm("reclaim the disks"));
            resumed.and(stopped).and(reclaimed)?;
            record(Handover::Kept)
        }
    }
}
