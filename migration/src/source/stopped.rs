//! The guest stands still here, and its destination does not have all of it yet.

use std::time::Instant;

use super::course::{Failed, milliseconds};
use super::moving::Moving;
use super::passes::{Rates, Until};
use super::ready::Ready;
use crate::error::Error;
use crate::frames::PassKind;
use crate::pages::{digest_text, full_digest};
use crate::progress::{Phase, Verify};
use crate::streams::marks::Marks;
use crate::wire::MAX_STATE;
use crate::wire::control::{LastPass, Message, Saved};

/// A guest that was stopped after a pass.
pub(super) struct Stopped<'m, 's, 'a> {
    moving: Moving<'m, 's, 'a>,
    /// The last pass.
    pass: u32,
    /// What was fetched after it, or was not sent in it.
    marks: Marks,
    /// As what memory is sent first.
    memory: PassKind,
}

impl<'m, 's, 'a> Stopped<'m, 's, 'a> {
    pub fn new(moving: Moving<'m, 's, 'a>, pass: u32, marks: Marks, memory: PassKind) -> Self {
        Self {
            moving,
            pass,
            marks,
            memory,
        }
    }

    /// Sends what is left of the guest, until the destination has loaded all of it and says so.
    pub fn send_rest(mut self) -> Result<Ready<'m, 's, 'a>, Failed> {
        let loaded = self.send().and_then(|()| {
            self.moving.course.enter(Phase::Ready);
            self.await_ready()
        });
        match loaded {
            Ok(()) => Ok(Ready::new(self.moving)),
            Err(error) => Err(self.moving.fail(error)),
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        // A time-out may have stopped the guest in the middle of the pass before.
        let stopped = self.moving.course.stopped_at.unwrap_or_else(Instant::now);
        // Device marks are taken by the fetch: what was fetched before is still to be sent.
        let mut marks = self.moving.take_marks()?;
        marks.add(&self.marks);
        let rates = Rates::default();
        let mut pass = self.pass + 1;
        let mut bytes = marks.bytes();
        let kinds = (PassKind::Again, Some(self.memory));
        self.moving.start_pass(pass, kinds, marks);
        // The state is saved while the last pages travel.
        let saving = Instant::now();
        let saved = self.moving.transfer.heard.map(|(after_pass, heard)| Saved {
            after_pass,
            after_us: u64::try_from((saving - heard).as_micros()).unwrap_or(u64::MAX),
        });
        let vm = self.moving.course.vm;
        let state = vm
            .save_state()
            .map_err(Error::vm("save the machine's state"))?;
        let save = saving.elapsed();
        if state.len() > MAX_STATE {
            return Err(Error::StateTooLarge {
                len: state.len(),
                limit: MAX_STATE,
            });
        }
        self.moving.link.session.send(&Message::State(state))?;
        let disks = self.disk_samples()?;
        self.moving.finish_pass(pass, bytes, &rates, Until::Sent)?;
        // Saving may have completed an access of a vCPU or a device that wrote to memory.
        let written = self.moving.take_marks()?;
        let more = written.bytes();
        if more > 0 {
            pass += 1;
            bytes += more;
            let kinds = (PassKind::Again, Some(PassKind::Again));
            self.moving.start_pass(pass, kinds, written);
            self.moving.finish_pass(pass, more, &rates, Until::Sent)?;
        }
        self.moving.tell_rests()?;
        self.moving.link.session.send(&Message::LastPass(LastPass {
            pass,
            saved,
            run_state: Some(self.moving.transfer.run_state),
            disks,
        }))?;
        tracing::debug!(bytes, "the last of it sent");
        let stop = self.moving.course.report.downtime.stop.unwrap_or_default();
        self.moving.course.report.downtime.state_save = Some(milliseconds(save));
        let copying = milliseconds(stopped.elapsed().saturating_sub(save)) - stop;
        self.moving.course.report.downtime.last_pages = Some(copying.max(0.0));
        Ok(())
    }

    /// Samples of the disks of which the destination wants some, while the last pages travel.
    fn disk_samples(&self) -> Result<Option<String>, Error> {
        let Moving {
            transfer, course, ..
        } = &self.moving;
        if transfer.doubtful_disks.is_empty() {
            return Ok(None);
        }
        let samples = course
            .vm
            .disk_samples(&transfer.doubtful_disks)
            .map_err(Error::vm("read samples of the disks"))?;
        Ok(Some(samples))
    }

    /// Waits until the destination has loaded everything, and compares the digests.
    fn await_ready(&mut self) -> Result<(), Error> {
        let Moving {
            link,
            transfer,
            course,
            ..
        } = &mut self.moving;
        let began = Instant::now();
        let digests = transfer.digest();
        let ours = match course.options.request.verify {
            Verify::Off => None,
            Verify::Stream => Some(digest_text(digests.pages)),
            // The destination hashes at the same time.
            Verify::Full => {
                let session = &*link.session;
                let digest = full_digest::of(&transfer.ram, &|| session.is_stopped());
                Some(digest.ok_or_else(|| session.why_stopped(&link.notes))?)
            }
        };
        let hashing =
            full_digest::patience(course.options.request.verify, course.report.guest_bytes);
        let patience = course.options.prepare_timeout + hashing;
        let ready = match link.answer("loading the state", patience, || course.check_time())? {
            Message::Ready(ready) => ready,
            other => return Err(other.unexpected("ready")),
        };
        transfer.disks.are_whole(ready.whole_disks);
        let load = ready.load_ms.clamp(0.0, 1e9);
        course.report.downtime.state_load = load;
        course.report.downtime.state_send = Some((milliseconds(began.elapsed()) - load).max(0.0));
        let Some(ours) = ours else { return Ok(()) };
        compare(ours, ready.digest)?;
        if !transfer.disks.is_empty() {
            compare(digest_text(digests.blocks), ready.disks_digest)?;
        }
        course.report.verified = true;
        Ok(())
    }
}

fn compare(ours: String, theirs: Option<String>) -> Result<(), Error> {
    if theirs.as_ref() == Some(&ours) {
        return Ok(());
    }
    Err(Error::DigestMismatch {
        ours,
        theirs: theirs.map_or_else(|| "none".into(), |t| t.chars().take(64).collect()),
    })
}
