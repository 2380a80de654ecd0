//! Single passes, while the guest runs and when it is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::run::{Link, Run, Streams, milliseconds, unexpected};
use crate::PAGE_SIZE;
use crate::convergence::{self, Observed};
use crate::error::Error;
use crate::pages::dirty::{self, Bitmaps};
use crate::pages::sender::{Pass, PassKind};
use crate::progress::{Event, TimeoutAction};
use crate::raw::Ram;
use crate::session::Note;
use crate::wire::MAX_STATE;
use crate::wire::control::{LastPass, Message, Saved};

/// Assumed before anything was measured, in bytes per second.
const FIRST_BANDWIDTH: f64 = 200e6;
/// Between two progress events.
const PROGRESS: Duration = Duration::from_millis(100);

/// What has been measured so far.
pub(super) struct Rates {
    /// Guest memory that reaches the destination, bytes per second.
    pub bandwidth: f64,
    /// Guest memory that is dirtied, bytes per second.
    pub dirty: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            bandwidth: FIRST_BANDWIDTH,
            dirty: 0.0,
        }
    }
}

/// When a pass is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The destination has placed its pages.
    Placed,
    /// Its pages are sent.
    Sent,
}

impl Run<'_> {
    pub(super) fn fetch_dirty(&self, ram: &Ram) -> Result<Bitmaps, Error> {
        let mut dirty = dirty::none(ram);
        self.vm
            .fetch_dirty(&mut dirty)
            .map_err(Error::vm("fetch the dirty pages"))?;
        if dirty.len() != ram.regions().len() {
            return Err(Error::RamLayout { gpa: 0 });
        }
        for (bitmap, region) in dirty.iter_mut().zip(ram.regions()) {
            bitmap.resize(region.pages().div_ceil(64) as usize, 0);
        }
        dirty::mask_tails(&mut dirty, ram);
        Ok(dirty)
    }

    pub(super) fn start_pass(
        &self,
        streams: &Streams,
        number: u32,
        kind: PassKind,
        dirty: &mut Bitmaps,
    ) -> Result<(), Error> {
        let pass = Arc::new(Pass {
            number,
            kind,
            dirty: std::mem::take(dirty),
        });
        for job in &streams.jobs {
            // A stream that ended has said why; the session knows.
            let _ = job.send(pass.clone());
        }
        Ok(())
    }

    pub(super) fn finish_pass(
        &mut self,
        link: &Link,
        streams: &mut Streams,
        pass: u32,
        pages: u64,
        rates: &Rates,
        until: Until,
    ) -> Result<(), Error> {
        let done_before = self.counters.pages();
        let mut told = (Instant::now(), self.counters.wire_bytes());
        let mut sending = streams.jobs.len();
        let mut placed = until == Until::Sent || self.heard.is_some_and(|(of, _)| of >= pass);
        // What is in the buffers of a slow network takes its time to arrive.
        let patience = self.options.io_timeout * 6;
        let mut sent_at = Instant::now();
        while sending > 0 || !placed {
            self.check_stop()?;
            match link
                .session
                .next(&link.notes, PROGRESS.saturating_sub(told.0.elapsed()))?
            {
                Some(Note::PassDone {
                    stream,
                    pass: of,
                    digest,
                }) if of == pass => {
                    streams.digests[usize::from(stream)] = digest;
                    sending -= 1;
                    sent_at = Instant::now();
                }
                Some(Note::Message(Message::PassPlaced(done))) => {
                    self.heard = Some((done.pass, Instant::now()));
                    placed |= done.pass >= pass;
                }
                Some(Note::Message(other)) => {
                    return Err(unexpected(&other, "pass-placed"));
                }
                Some(_) => {}
                None => {
                    link.session.check_data()?;
                    if sending == 0 && sent_at.elapsed() >= patience {
                        return Err(Error::NoAnswer {
                            operation: "placing pages",
                            waited: patience,
                        });
                    }
                    let seconds = told.0.elapsed().as_secs_f64().max(1e-6);
                    let now = (Instant::now(), self.counters.wire_bytes());
                    let rate = (now.1 - told.1) as f64 / seconds;
                    let done = self.counters.pages() - done_before;
                    self.progress(pass, pages.saturating_sub(done) * PAGE_SIZE, rate, rates);
                    told = now;
                }
            }
        }
        Ok(())
    }

    fn progress(&mut self, pass: u32, remaining_bytes: u64, rate: f64, rates: &Rates) {
        let mut observed = self.observed(pass, remaining_bytes, rates);
        if pass == 1 {
            observed.bandwidth = rate;
        }
        let forecast = convergence::forecast(&observed, &self.control.limits());
        if self.stopped_at.is_none() {
            self.forecast = forecast.downtime;
        }
        self.control.emit(Event::Progress {
            phase: self.phase,
            iteration: pass,
            sent_bytes: self.counters.wire_bytes(),
            remaining_bytes,
            mib_per_s: rate / f64::from(1 << 20),
            dirty_pages_per_s: rates.dirty / PAGE_SIZE as f64,
            eta_ms: forecast.time_left.map(milliseconds),
            forecast_downtime_ms: milliseconds(forecast.downtime),
        });
    }

    pub(super) fn observed(&self, pass: u32, remaining_bytes: u64, rates: &Rates) -> Observed {
        Observed {
            iteration: pass,
            remaining_bytes,
            bandwidth: rates.bandwidth,
            dirty_rate: rates.dirty,
            overhead: self.costs.total(),
            elapsed: self.began.elapsed(),
            run_state: self.vm.run_state(),
        }
    }

    /// Acts on a time-out in the middle of a pass: gives up, or stops the guest right away.
    pub(super) fn check_stop(&mut self) -> Result<(), Error> {
        if self.stopped_at.is_some() {
            return Ok(());
        }
        self.check_time()?;
        if self.is_late() && self.options.request.on_timeout == TimeoutAction::Stop {
            self.pause()?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        if self.stopped_at.is_none() {
            let began = Instant::now();
            self.stopped_at = Some(began);
            self.undo.paused = true;
            self.report.forecast_downtime_ms = Some(milliseconds(self.forecast));
            self.vm.pause().map_err(Error::vm("pause the guest"))?;
            self.report.downtime.stop = Some(milliseconds(began.elapsed()));
            // Its user may have changed it since the migration began, and cannot any more.
            self.run_state = self.vm.run_state();
            self.report.run_state = self.run_state;
            self.stop_sharing();
        }
        Ok(())
    }

    /// Stops the guest and sends what is left of it.
    pub(super) fn stop_and_copy(
        &mut self,
        link: &Link,
        ram: &Ram,
        streams: &mut Streams,
        pass: u32,
        known_dirty: Bitmaps,
    ) -> Result<(), Error> {
        self.pause()?;
        // A time-out may have stopped the guest in the middle of the pass before.
        let stopped = self.stopped_at.unwrap_or_else(Instant::now);
        // Device marks are taken by the fetch: what was fetched before is still to be sent.
        let mut dirty = self.fetch_dirty(ram)?;
        for (now, known) in dirty.iter_mut().flatten().zip(known_dirty.iter().flatten()) {
            *now |= known;
        }
        let rates = Rates::default();
        let mut pass = pass + 1;
        let mut pages = dirty::count(&dirty);
        self.start_pass(streams, pass, PassKind::Again, &mut dirty)?;
        // The state is saved while the last pages travel.
        let saving = Instant::now();
        let saved = self.heard.map(|(after_pass, heard)| Saved {
            after_pass,
            after_us: u64::try_from((saving - heard).as_micros()).unwrap_or(u64::MAX),
        });
        let state = self
            .vm
            .save_state()
            .map_err(Error::vm("save the machine's state"))?;
        let save = saving.elapsed();
        if state.len() > MAX_STATE {
            return Err(Error::StateTooLarge {
                len: state.len(),
                limit: MAX_STATE,
            });
        }
        link.session.send(&Message::State(state))?;
        let disks = self.disk_samples()?;
        self.finish_pass(link, streams, pass, pages, &rates, Until::Sent)?;
        // Saving may have completed an access of a vCPU or a device that wrote to memory.
        let mut late = self.fetch_dirty(ram)?;
        let late_pages = dirty::count(&late);
        if late_pages > 0 {
            pass += 1;
            pages += late_pages;
            self.start_pass(streams, pass, PassKind::Again, &mut late)?;
            self.finish_pass(link, streams, pass, late_pages, &rates, Until::Sent)?;
        }
        link.session.send(&Message::LastPass(LastPass {
            pass,
            saved,
            run_state: Some(self.run_state),
            disks,
        }))?;
        tracing::debug!(pages, "last pages sent");
        let stop = self.report.downtime.stop.unwrap_or_default();
        self.report.downtime.state_save = Some(milliseconds(save));
        let copying = milliseconds(stopped.elapsed().saturating_sub(save)) - stop;
        self.report.downtime.last_pages = Some(copying.max(0.0));
        Ok(())
    }

    /// Samples of the disks of which the destination wants some, while the last pages travel.
    fn disk_samples(&self) -> Result<Option<String>, Error> {
        if self.doubtful_disks.is_empty() {
            return Ok(None);
        }
        let samples = self
            .vm
            .disk_samples(&self.doubtful_disks)
            .map_err(Error::vm("read samples of the disks"))?;
        Ok(Some(samples))
    }
}
