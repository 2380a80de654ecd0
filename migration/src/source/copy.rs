//! Pre-copy passes while the guest runs, and the last ones when it is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::setup::Streams;
use super::{Link, Run, milliseconds};
use crate::PAGE_SIZE;
use crate::convergence::{self, Decision, Forecast, Observed, Outlook};
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::pages::dirty::{self, Bitmaps};
use crate::pages::sender::{Pass, PassKind};
use crate::progress::{Event, Iteration, Phase, TimeoutAction};
use crate::raw::Ram;
use crate::session::Note;
use crate::wire::MAX_STATE;
use crate::wire::control::{LastPass, Message, Saved};

/// Assumed before anything was measured, in bytes per second.
const FIRST_BANDWIDTH: f64 = 200e6;
/// Passes with less on the wire measure latency, not bandwidth.
const MEASURABLE: u64 = 1 << 20;
/// What stopping the guest, and saving and loading its state, is taken to cost.
const STOP_AND_STATE: Duration = Duration::from_millis(4);
/// Between two progress events.
const PROGRESS: Duration = Duration::from_millis(100);
/// Passes that do not converge before the user is warned.
const WARN_AFTER: u32 = 3;

/// What has been measured so far.
pub(super) struct Rates {
    /// Guest memory that reaches the destination, bytes per second.
    bandwidth: f64,
    /// Guest memory that is dirtied, bytes per second.
    dirty: f64,
}

/// When a pass is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The destination has placed its pages.
    Placed,
    /// Its pages are sent.
    Sent,
}

impl Run<'_> {
    /// Copies until the switch-over is due: the number of the last pass, and what is dirty still.
    pub(super) fn precopy(
        &mut self,
        link: &Link,
        ram: &Ram,
        streams: &mut Streams,
    ) -> Result<(u32, Bitmaps), Error> {
        let mut rates = Rates {
            bandwidth: FIRST_BANDWIDTH,
            dirty: 0.0,
        };
        let mut pass = 1;
        let mut kind = PassKind::First;
        let mut dirty = dirty::all(ram);
        let mut stuck = 0;
        loop {
            let _iteration = tracing::info_span!("iteration", n = pass).entered();
            let pages = dirty::count(&dirty);
            let wire_before = self.counters.wire_bytes();
            let began = Instant::now();
            self.start_pass(streams, pass, kind, &mut dirty)?;
            self.finish_pass(link, streams, pass, pages, &rates, Until::Placed)?;
            let took = began.elapsed().max(Duration::from_micros(1)).as_secs_f64();
            let wire = self.counters.wire_bytes() - wire_before;
            dirty = self.fetch_dirty(ram)?;
            let remaining = dirty::count(&dirty);
            rates.dirty = (remaining * PAGE_SIZE) as f64 / took;
            if wire >= MEASURABLE {
                rates.bandwidth = wire as f64 / took;
            }
            let iteration = Iteration {
                n: pass,
                pages,
                bytes: wire,
                ms: took * 1e3,
                dirty_pages_per_s: remaining as f64 / took,
                mib_per_s: wire as f64 / took / f64::from(1 << 20),
            };
            tracing::debug!(
                pages,
                bytes = wire,
                ms = iteration.ms,
                remaining,
                "iteration ended"
            );
            let told = self.report.iterations.get_or_insert_default();
            told.push(iteration.clone());
            self.control.emit(Event::Iteration(iteration));
            if self.stopped_at.is_some() {
                return Ok((pass, dirty));
            }
            let observed = self.observed(link, pass, remaining * PAGE_SIZE, &rates);
            let limits = self.control.limits();
            let forecast = convergence::forecast(&observed, &limits);
            match convergence::decide(&observed, &limits, self.deadline()) {
                Decision::SwitchOver => {
                    self.report.forecast_downtime_ms = Some(milliseconds(forecast.downtime));
                    return Ok((pass, dirty));
                }
                Decision::GiveUp => {
                    return Err(Error::TimedOut(self.options.timeout.unwrap_or_default()));
                }
                Decision::Iterate(outlook) => {
                    stuck = if outlook == Outlook::Stuck {
                        stuck + 1
                    } else {
                        0
                    };
                    if stuck == WARN_AFTER {
                        self.warn_stuck(&observed, forecast, limits.downtime);
                    }
                }
            }
            pass += 1;
            kind = PassKind::Again;
        }
    }

    fn warn_stuck(&self, observed: &Observed, forecast: Forecast, limit: Duration) {
        let mib = f64::from(1 << 20);
        self.control.warn(
            Observation::new(
                Side::Source,
                "migration.not-converging",
                format!(
                    "the guest dirties {:.0} MiB/s, {:.0} MiB/s reach the destination: stopped now it \
                     would be down for {:.0} ms, the limit is {:.0} ms",
                    observed.dirty_rate / mib,
                    observed.bandwidth / mib,
                    milliseconds(forecast.downtime),
                    milliseconds(limit),
                ),
            )
            .in_phase(Phase::Precopy.name()),
        );
    }

    fn observed(&self, link: &Link, pass: u32, remaining_bytes: u64, rates: &Rates) -> Observed {
        // The last pages, the state and the commit each wait for an answer.
        let waits = link.session.round_trip() * 3;
        Observed {
            iteration: pass,
            remaining_bytes,
            bandwidth: rates.bandwidth,
            dirty_rate: rates.dirty,
            overhead: STOP_AND_STATE + waits + self.journal_cost,
            elapsed: self.began.elapsed(),
        }
    }

    fn fetch_dirty(&self, ram: &Ram) -> Result<Bitmaps, Error> {
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

    fn start_pass(
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

    fn finish_pass(
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
        let mut placed = until == Until::Sent;
        // What is in the buffers of a slow network takes its time to arrive.
        let patience = self.options.io_timeout * 6;
        let mut sent_at = Instant::now();
        while sending > 0 || !placed {
            self.check_stop(link)?;
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
                    placed |= done.pass == pass;
                }
                Some(Note::Message(other)) => {
                    return Err(super::setup::unexpected(&other, "pass-placed"));
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
                    self.progress(
                        link,
                        pass,
                        pages.saturating_sub(done) * PAGE_SIZE,
                        rate,
                        rates,
                    );
                    told = now;
                }
            }
        }
        Ok(())
    }

    fn progress(&self, link: &Link, pass: u32, remaining_bytes: u64, rate: f64, rates: &Rates) {
        let mut observed = self.observed(link, pass, remaining_bytes, rates);
        if pass == 1 {
            observed.bandwidth = rate;
        }
        let forecast = convergence::forecast(&observed, &self.control.limits());
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

    /// Acts on a time-out in the middle of a pass: gives up, or stops the guest right away.
    fn check_stop(&mut self, _link: &Link) -> Result<(), Error> {
        if self.stopped_at.is_some() {
            return Ok(());
        }
        self.check_time()?;
        let late = self
            .options
            .timeout
            .is_some_and(|timeout| self.began.elapsed() >= timeout);
        if late && self.options.on_timeout == TimeoutAction::Stop {
            self.pause()?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        if self.stopped_at.is_none() {
            let began = Instant::now();
            self.stopped_at = Some(began);
            self.undo.paused = true;
            self.vm.pause().map_err(Error::vm("pause the guest"))?;
            self.report.downtime.stop = Some(milliseconds(began.elapsed()));
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
        let rates = Rates {
            bandwidth: FIRST_BANDWIDTH,
            dirty: 0.0,
        };
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
        link.session
            .send(&Message::LastPass(LastPass { pass, saved }))?;
        tracing::debug!(pages, "last pages sent");
        let stop = self.report.downtime.stop.unwrap_or_default();
        self.report.downtime.state_save = Some(milliseconds(save));
        let copying = milliseconds(stopped.elapsed().saturating_sub(save)) - stop;
        self.report.downtime.last_pages = Some(copying.max(0.0));
        Ok(())
    }
}
