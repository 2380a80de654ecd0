//! Single passes, while the guest runs and when it is stopped.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::course::milliseconds;
use super::moving::Moving;
use crate::convergence::{self, Decision, Forecast, Observed};
use crate::error::Error;
use crate::frames::PassKind;
use crate::pages::dirty;
use crate::progress::{Event, Limits};
use crate::session::Note;
use crate::streams::marks::Marks;
use crate::streams::sender::Pass;

/// Assumed before anything was measured, in bytes per second.
const FIRST_BANDWIDTH: f64 = 200e6;
/// Passes with less on the wire measure latency, not bandwidth.
const MEASURABLE: u64 = 1 << 20;
/// Between two progress events.
const PROGRESS: Duration = Duration::from_millis(100);

/// What has been measured so far.
pub(super) struct Rates {
    /// Of what is to be sent, bytes that reach the destination per second.
    pub bandwidth: f64,
    pub known: Known,
    /// Bytes that the guest dirties per second, of memory and of disks that travel.
    pub dirty: f64,
    /// Pages of memory among them.
    pub dirty_pages: f64,
}

/// How the bandwidth is known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It was measured, or is assumed.
    Measured,
    /// It is that at least: streams have waited, or passed what the destination has already.
    AtLeast,
}

impl Rates {
    /// A pass has `sent` so many bytes in `took` seconds, and passed so many that were `present`.
    pub fn passed(&mut self, sent: u64, took: f64, present: u64) {
        let measured = sent as f64 / took;
        match (sent >= MEASURABLE, present > 0, self.known) {
            (true, true, _) => (self.bandwidth, self.known) = (measured, Known::AtLeast),
            (true, false, _) => (self.bandwidth, self.known) = (measured, Known::Measured),
            // Latency takes its part of it, so the link may carry more.
            (false, _, Known::AtLeast) => self.bandwidth = self.bandwidth.max(measured),
            (false, _, Known::Measured) => {}
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            bandwidth: FIRST_BANDWIDTH,
            known: Known::Measured,
            dirty: 0.0,
            dirty_pages: 0.0,
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
    /// Takes the marks of what was written since they were last taken.
    pub(super) fn take_marks(&self) -> Result<Marks, Error> {
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
        Ok(Marks {
            pages: dirty,
            blocks: self.transfer.sent_blocks.take_changes()?,
        })
    }

    /// Has the streams send `marks`, of disks and of memory as what they are sent; they are kept in what it returns.
    pub(super) fn start_pass(
        &self,
        number: u32,
        (kind, memory): (PassKind, Option<PassKind>),
        mut marks: Marks,
    ) -> Arc<Pass> {
        self.transfer.sent_blocks.begin_pass(&mut marks.blocks);
        let pass = Arc::new(Pass {
            number,
            kind,
            memory,
            marks,
            under_way: AtomicUsize::new(self.link.streams()),
        });
        self.link.send_pass(&pass);
        pass
    }

    pub(super) fn finish_pass(
        &mut self,
        pass: u32,
        bytes: u64,
        rates: &Rates,
        until: Until,
    ) -> Result<(), Error> {
        let done_before = self.course.counters.bytes_done();
        let mut told = (Instant::now(), self.course.counters.wire_bytes());
        let mut sending = self.link.streams();
        let mut placed = until == Until::Sent || self.has_placed(pass);
        // What is in the buffers of a slow network takes its time to arrive.
        let patience = self.course.options.io_timeout * 6;
        let mut sent_at = Instant::now();
        while sending > 0 || !placed {
            let done = self.course.counters.bytes_done() - done_before;
            let left_bytes = bytes.saturating_sub(done);
            self.check_stop(&self.observed(pass, left_bytes, rates))?;
            self.transfer.disks.check()?;
            self.mirror_within(rates)?;
            self.leave_rests()?;
            self.look_after_mirrors()?;
            match self.next(PROGRESS.saturating_sub(told.0.elapsed()))? {
                Some(Note::PassDone {
                    stream,
                    pass: of,
                    digests,
                }) if of == pass => {
                    self.transfer.digests[usize::from(stream)] = digests;
                    sending -= 1;
                    sent_at = Instant::now();
                }
                Some(_) => placed |= self.has_placed(pass),
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
                    self.progress(pass, left_bytes, rate, rates);
                    told = now;
                }
            }
        }
        self.tell_disks();
        Ok(())
    }

    fn progress(&mut self, pass: u32, remaining_bytes: u64, rate: f64, rates: &Rates) {
        let mut observed = self.observed(pass, remaining_bytes, rates);
        if pass == 1 {
            observed.bandwidth = rate;
        }
        let forecast = self.forecast(&observed, &self.limits());
        self.tell_disks();
        self.course.steering.emit(Event::Progress {
            phase: self.course.phase(),
            iteration: pass,
            sent_bytes: self.course.counters.wire_bytes(),
            remaining_bytes,
            mib_per_s: rate / f64::from(1 << 20),
            dirty_pages_per_s: rates.dirty_pages,
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

    /// What is to be expected now; kept as long as the guest is not stopped.
    pub(super) fn forecast(&mut self, observed: &Observed, limits: &Limits) -> Forecast {
        let forecast = convergence::forecast(observed, limits);
        if !self.is_stopped() {
            self.transfer.forecast = forecast.downtime;
        }
        forecast
    }

    /// What is to come, as the policy says.
    pub(super) fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision {
        self.course.policy.may_stop(observed, limits)
    }

    /// Acts on a time-out in the middle of a pass: gives up, or stops the guest right away if the policy lets it.
    pub(super) fn check_stop(&mut self, observed: &Observed) -> Result<(), Error> {
        if self.is_stopped() {
            return Ok(());
        }
        self.course.check_time()?;
        if !self.is_late() {
            return Ok(());
        }
        match self.may_stop(observed, &self.limits()) {
            Decision::SwitchOver => self.stop(),
            Decision::GiveUp => Err(self.course.timed_out()),
            Decision::Iterate(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pass_shows_of_the_link_depends_on_what_it_waited_for() {
        const MANY: u64 = MEASURABLE;
        let mut rates = Rates::default();
        // Bytes that were sent in a second, those that were there, and the bandwidth then.
        for (sent, present, bandwidth) in [
            (MANY - 1, 0, FIRST_BANDWIDTH),
            (2 * MANY, 0, (2 * MANY) as f64),
            (MANY / 2, 0, (2 * MANY) as f64),
            (MANY, 1, MANY as f64),
            (MANY / 2, 0, MANY as f64),
        ] {
            rates.passed(sent, 1.0, present);
            assert!(
                (rates.bandwidth - bandwidth).abs() < 1.0,
                "{sent} {present}"
            );
        }
        // A short one that was faster shows that the link is.
        rates.passed(MANY / 2, 0.1, 0);
        assert!(rates.bandwidth > 4.0 * MANY as f64);
    }
}
