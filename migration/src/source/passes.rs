//! Single passes, while the guest runs and when it is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::course::milliseconds;
use super::moving::Moving;
use crate::PAGE_SIZE;
use crate::convergence::{self, Observed};
use crate::error::Error;
use crate::pages::dirty::{self, Bitmaps};
use crate::pages::sender::{Pass, PassKind};
use crate::progress::{Event, TimeoutAction};
use crate::session::Note;
use crate::wire::control::Message;

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

impl Moving<'_, '_, '_> {
    pub(super) fn fetch_dirty(&self) -> Result<Bitmaps, Error> {
        let (ram, vm) = (&self.transfer.ram, self.course.vm);
        let mut dirty = dirty::none(ram);
        vm.read_vcpu_writes(&mut dirty)
            .and_then(|()| vm.take_device_writes(&mut dirty))
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

    pub(super) fn start_pass(&self, number: u32, kind: PassKind, dirty: Bitmaps) {
        self.link.send_pass(&Arc::new(Pass {
            number,
            kind,
            dirty,
        }));
    }

    pub(super) fn finish_pass(
        &mut self,
        pass: u32,
        pages: u64,
        rates: &Rates,
        until: Until,
    ) -> Result<(), Error> {
        let done_before = self.course.counters.pages();
        let mut told = (Instant::now(), self.course.counters.wire_bytes());
        let mut sending = self.link.streams();
        let mut placed =
            until == Until::Sent || self.transfer.heard.is_some_and(|(of, _)| of >= pass);
        // What is in the buffers of a slow network takes its time to arrive.
        let patience = self.course.options.io_timeout * 6;
        let mut sent_at = Instant::now();
        while sending > 0 || !placed {
            self.check_stop()?;
            let link = &self.link;
            match link
                .session
                .next(&link.notes, PROGRESS.saturating_sub(told.0.elapsed()))?
            {
                Some(Note::PassDone {
                    stream,
                    pass: of,
                    digest,
                }) if of == pass => {
                    self.transfer.digests[usize::from(stream)] = digest;
                    sending -= 1;
                    sent_at = Instant::now();
                }
                Some(Note::Message(Message::PassPlaced(done))) => {
                    self.transfer.heard = Some((done.pass, Instant::now()));
                    placed |= done.pass >= pass;
                }
                Some(Note::Message(other)) => {
                    return Err(other.unexpected("pass-placed"));
                }
                Some(_) => {}
                None => {
                    if sending == 0 && sent_at.elapsed() >= patience {
                        return Err(Error::NoAnswer {
                            operation: "placing pages",
                            waited: patience,
                        });
                    }
                    let seconds = told.0.elapsed().as_secs_f64().max(1e-6);
                    let now = (Instant::now(), self.course.counters.wire_bytes());
                    let rate = (now.1 - told.1) as f64 / seconds;
                    let done = self.course.counters.pages() - done_before;
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
        let forecast = convergence::forecast(&observed, &self.course.control.limits());
        if self.guest.is_none() {
            self.transfer.forecast = forecast.downtime;
        }
        self.course.control.emit(Event::Progress {
            phase: self.course.phase(),
            iteration: pass,
            sent_bytes: self.course.counters.wire_bytes(),
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
            overhead: self.transfer.costs.total(),
            elapsed: self.course.began.elapsed(),
            run_state: self.course.vm.run_state(),
        }
    }

    /// Acts on a time-out in the middle of a pass: gives up, or stops the guest right away.
    pub(super) fn check_stop(&mut self) -> Result<(), Error> {
        if self.guest.is_some() {
            return Ok(());
        }
        self.course.check_time()?;
        if self.course.is_late() && self.course.options.request.on_timeout == TimeoutAction::Stop {
            self.stop()?;
        }
        Ok(())
    }
}
