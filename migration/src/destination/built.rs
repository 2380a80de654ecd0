//! The machine is built, and what is the guest's comes in.

use std::time::{Duration, Instant};

use super::course::Failure;
use super::loaded::Loaded;
use super::taking::Taking;
use super::transfer::Transfer;
use crate::error::Error;
use crate::pages::{full_digest, processors};
use crate::progress::{Phase, Verify};
use crate::session::Note;
use crate::vm::Wish;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Extents, LastPass, Message, PassPlaced, Ready};

/// A machine without its guest.
pub(super) struct Built<'m, 's, 'a> {
    // Let go of before the machine that it lies in.
    pub transfer: Transfer,
    pub taking: Taking<'m, 's, 'a>,
}

/// Sees whether anything comes.
struct Watch {
    patience: Duration,
    /// When something came last, and how many bytes there were then.
    seen: (Instant, u64),
}

impl Watch {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            seen: (Instant::now(), 0),
        }
    }

    fn look(&mut self, note: Option<&Note>, bytes: u64) -> Result<(), Error> {
        if note.is_some() || bytes != self.seen.1 {
            self.seen = (Instant::now(), bytes);
        } else if self.seen.0.elapsed() >= self.patience {
            return Err(Error::NoProgress(self.patience));
        }
        Ok(())
    }
}

impl<'m, 's, 'a> Built<'m, 's, 'a> {
    /// Nothing has come yet.
    pub fn new(taking: Taking<'m, 's, 'a>, transfer: Transfer) -> Self {
        Self { transfer, taking }
    }

    /// Takes in all that comes until there is no more of it, and loads the state.
    pub fn receive(mut self) -> Result<Loaded<'m, 's, 'a>, Failure> {
        let loaded = self.receive_all().and_then(|state| self.load(&state));
        let Self { transfer, taking } = self;
        match loaded {
            Ok(ready) => Ok(Loaded::new(taking, transfer, ready)),
            Err(error) => {
                drop(transfer);
                Err(taking.fail(error))
            }
        }
    }

    /// Takes in what comes until there is no more of it, on one link after the other; the machine's state.
    fn receive_all(&mut self) -> Result<Vec<u8>, Error> {
        let received = loop {
            match self.receive_on_link() {
                Err(error) => match self.await_source(error) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                received => break received,
            }
        };
        self.taking.course.reception.end_coming_again();
        received
    }

    /// The source has sent its state: its guest stands still.
    pub(super) fn is_stopped(&self) -> bool {
        self.transfer.state.is_some()
    }

    /// Deals out what comes on the link, until there is no more of it; the machine's state.
    fn receive_on_link(&mut self) -> Result<Vec<u8>, Error> {
        let options = self.taking.course.options;
        let mut watch = Watch::new(options.progress_timeout);
        let slice = options.peer_timeout.min(options.progress_timeout);
        loop {
            if let Some(pass) = self.transfer.newly_placed() {
                let flush_us = self.flush_disks()?;
                let placed = Message::PassPlaced(PassPlaced { pass, flush_us });
                self.taking.link.session.send(&placed)?;
            }
            if let Some(state) = self.transfer.take_state_if_complete() {
                return Ok(state);
            }
            let note = self.taking.link.next(slice)?;
            watch.look(note.as_ref(), self.taking.course.counters.wire_bytes())?;
            if let Some(note) = note {
                self.take(note)?;
            }
        }
    }

    /// Makes durable what has come of disks, so that little is left to flush when the guest stands still, and how long that
    /// will take is known; how long it took, in microseconds.
    fn flush_disks(&self) -> Result<Option<u64>, Error> {
        let disks = &self.transfer.receiving.disks;
        if disks.is_empty() || self.transfer.state.is_some() {
            return Ok(None);
        }
        let began = Instant::now();
        disks.flush()?;
        Ok(u64::try_from(began.elapsed().as_micros()).ok())
    }

    fn take(&mut self, note: Note) -> Result<(), Error> {
        match note {
            Note::Data { stream, connection } => {
                let stream = self.transfer.stream(stream)?;
                let Taking { link, course, .. } = &mut self.taking;
                if course.phase() == Phase::Prepare {
                    course.enter(Phase::Precopy);
                }
                let numbers = [stream, self.transfer.requested.streams];
                let receiving = self.transfer.receiving.clone();
                link.add_stream(connection, receiving, numbers, self.transfer.beginning())
            }
            Note::PassDone {
                stream,
                pass,
                digests,
            } => {
                self.transfer.pass_done(stream, pass, digests);
                Ok(())
            }
            Note::Message(message) => self.hear(message),
            // Errors by now.
            Note::Failed | Note::ControlEnded(_) => Ok(()),
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), Error> {
        let Transfer {
            state, last_pass, ..
        } = &self.transfer;
        match message {
            Message::Extents(extents) => self.expect(extents),
            Message::State(bytes) if state.is_none() => {
                self.transfer.placings.state_is_here();
                self.taking.course.reception.end_coming_again();
                self.taking.course.enter(Phase::StopAndCopy);
                self.transfer.state = Some(bytes);
                Ok(())
            }
            Message::BlocksLeft(left) if state.is_some() && last_pass.is_none() => {
                self.transfer.receiving.disks.are_left(&left)
            }
            Message::LastPass(pass) if state.is_some() && last_pass.is_none() => {
                self.end_passes(&pass)
            }
            other => Err(other.unexpected("pages")),
        }
    }

    /// Takes note of where data will come.
    fn expect(&mut self, Extents { extents }: Extents) -> Result<(), Error> {
        let receiving = &self.transfer.receiving;
        let memory = &receiving.memory;
        memory.populate.expect(&memory.ram, &extents);
        if processors::are_few(self.transfer.requested.streams) {
            return Ok(());
        }
        self.taking.link.go_ahead(receiving.clone(), extents)
    }

    /// No page follows after `last`, and the guest is as it says.
    fn end_passes(&mut self, last: &LastPass) -> Result<(), Error> {
        let Self { transfer, taking } = self;
        transfer.last_pass = Some(last.pass);
        // Its user may have paused it, or let it go on, since it was negotiated.
        taking.course.report.run_state = last.run_state.unwrap_or(transfer.requested.run_state);
        let (earliest, latest) = transfer.placings.saved_between(last.saved);
        let vm = &mut *taking.holds.machine.vm;
        vm.saved_between(earliest, latest);
        vm.check_disk_samples(last.disks.as_deref())
            .map_err(Error::vm("recognise the guest's disks"))
    }

    /// Loads the state when all else is here; what the source is told.
    fn load(&mut self, state: &[u8]) -> Result<Ready, Error> {
        self.taking.link.session.end_placing()?;
        self.transfer.receiving.disks.end_comparing()?;
        // Also what its source was told is placed: from the commit on nobody else has it.
        self.transfer.receiving.disks.flush()?;
        self.transfer.receiving.disks.lack_what_is_left()?;
        // Before the state is loaded: that may complete an access that writes to memory.
        let digest = self.digest()?;
        let Taking { holds, course, .. } = &mut self.taking;
        let began = Instant::now();
        holds
            .machine
            .vm
            .load_state(state)
            .map_err(Error::vm("load the machine's state"))?;
        let load_ms = began.elapsed().as_secs_f64() * 1e3;
        course.report.downtime.state_load = load_ms;
        Ok(Ready {
            digest,
            disks_digest: self.transfer.disks_digest(),
            whole_disks: self.whole_disks(),
            load_ms,
        })
    }

    /// Disks that are here whole and durable, which is told to a source that looks for that.
    fn whole_disks(&self) -> Vec<String> {
        if !self.taking.link.agreed.has(Capabilities::DISK_TERMS) {
            return Vec::new();
        }
        // They came with all that the guest wrote to them, and were flushed.
        let disks = &self.transfer.receiving.disks;
        let volumes = self.transfer.requested.volumes.iter().enumerate();
        let came = volumes
            .filter(|(number, volume)| volume.wish != Wish::OnDemand && disks.is_whole(*number));
        came.map(|(_, volume)| volume.id.clone()).collect()
    }

    /// The digest of the memory, as the source asked for it.
    fn digest(&self) -> Result<Option<String>, Error> {
        let link = &self.taking.link;
        match self.transfer.requested.verify {
            Verify::Off => Ok(None),
            Verify::Stream => Ok(Some(self.transfer.stream_digest())),
            Verify::Full => {
                let session = &*link.session;
                let is_over = || session.is_stopped();
                let digest = full_digest::of(&self.transfer.receiving.memory.ram, &is_over);
                Ok(Some(digest.ok_or_else(|| link.why_stopped())?))
            }
        }
    }
}
