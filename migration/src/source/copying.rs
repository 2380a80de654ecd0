//! Pre-copy: passes while the guest runs, until it can be stopped within the limit.

use std::thread::Scope;
use std::time::{Duration, Instant};

use super::costs::Costs;
use super::course::{Failed, milliseconds};
use super::flushing::Flushing;
use super::moving::Moving;
use super::pace::Pace;
use super::passes::{Rates, Until};
use super::policy::SwitchOverPolicy;
use super::stopped::Stopped;
use crate::PAGE_SIZE;
use crate::convergence::{self, Decision, Forecast, Observed, Outlook};
use crate::error::Error;
use crate::observation::{Observation, Side};
use crate::pages::dirty::{self, Bitmaps};
use crate::pages::full_digest;
use crate::pages::sender::PassKind;
use crate::progress::{Event, Iteration, Limits, Phase, Verify};
use crate::session::Note;
use crate::vm::RunState;
use crate::wire::control::Message;

/// Passes with less on the wire measure latency, not bandwidth.
const MEASURABLE: u64 = 1 << 20;
/// Passes that do not converge before the user is warned.
const WARN_AFTER: u32 = 3;
/// How long a pass that only awaits the end of a flush may be put off.
const BESIDE_FLUSH: Duration = Duration::from_millis(50);
/// How soon, between passes, the end of the link is seen.
const SLICE: Duration = Duration::from_millis(20);
/// What a switch-over costs is measured again after so long, if that is what keeps it off.
const MEASURE_AGAIN: Duration = Duration::from_secs(1);

/// A destination that has built the machine and takes pages, while the guest runs here.
pub(super) struct Copying<'m, 's, 'a> {
    moving: Moving<'m, 's, 'a>,
    /// The pass that is next, or was last.
    pass: u32,
    kind: PassKind,
    /// What is to be sent.
    dirty: Bitmaps,
    /// When the log was last read: what it shows next was written since.
    log_read: Instant,
    rates: Rates,
    /// When it was measured what a switch-over costs.
    costs_measured: Option<Instant>,
    scope: &'s Scope<'s, 'a>,
}

/// Pages that a pass sent, and those that were dirty after it.
struct Passed {
    sent: u64,
    left: u64,
}

/// Of what its user was warned.
#[derive(Default)]
struct Warnings {
    /// Passes in a row that brought the end no nearer.
    stuck: u32,
    /// Limits that were said to be too strict.
    too_strict: Option<Limits>,
}

impl<'m, 's, 'a> Copying<'m, 's, 'a> {
    /// Nothing is copied yet, and the dirty log is on.
    pub fn new(moving: Moving<'m, 's, 'a>, scope: &'s Scope<'s, 'a>) -> Self {
        Self {
            dirty: dirty::all(&moving.transfer.ram),
            moving,
            pass: 1,
            kind: PassKind::First,
            log_read: Instant::now(),
            rates: Rates::default(),
            costs_measured: None,
            scope,
        }
    }

    /// Copies while the guest runs, until `policy` has it stopped.
    pub fn converge(
        mut self,
        policy: &dyn SwitchOverPolicy,
    ) -> Result<Stopped<'m, 's, 'a>, Failed> {
        self.moving.course.enter(Phase::Precopy);
        let copied = self.copy(policy);
        let stopped = copied.and_then(|()| {
            self.moving.course.enter(Phase::StopAndCopy);
            self.moving.stop()
        });
        match stopped {
            Ok(()) => Ok(Stopped::new(self.moving, self.pass, self.dirty)),
            Err(error) => Err(self.moving.fail(error)),
        }
    }

    /// Goes through passes until the guest is to be stopped.
    fn copy(&mut self, policy: &dyn SwitchOverPolicy) -> Result<(), Error> {
        let (vm, session) = (self.moving.course.vm, self.moving.link.session.clone());
        let flushing = Flushing::start(self.scope, vm, session, self.moving.course.control)?;
        vm.drop_device_writes()
            .map_err(Error::vm("drop the marks of what devices wrote before"))?;
        self.log_read = Instant::now();
        let mut pace = Pace::default();
        let mut warnings = Warnings::default();
        // A flush was begun so that the guest can be stopped after it, however long passes take.
        let mut flushed_to_stop = false;
        loop {
            let _iteration = tracing::info_span!("iteration", n = self.pass).entered();
            self.measure_costs();
            // The last pages, the state and the commit each wait for an answer.
            self.moving.transfer.costs.answers = self.moving.link.session.round_trip() * 3;
            self.warn_beforehand(&mut warnings);
            flushing.begin_if_due();
            let Passed { sent, left } = self.pass()?;
            if self.moving.guest.is_some() {
                return Ok(());
            }
            self.moving.transfer.costs.flush = flushing.cost();
            let limits = self.moving.course.control.limits();
            let left_bytes = left * PAGE_SIZE;
            let observed = self.moving.observed(self.pass, left_bytes, &self.rates);
            let forecast = convergence::forecast(&observed, &limits);
            self.moving.transfer.forecast = forecast.downtime;
            match policy.may_stop(&observed, &limits) {
                Decision::SwitchOver => {
                    let is_down_anyway = observed.run_state == RunState::Paused;
                    let is_flushed = flushing.is_fresh() || flushed_to_stop && !flushing.is_busy();
                    if is_flushed || is_down_anyway || self.moving.course.is_late() {
                        return Ok(());
                    }
                    if !flushed_to_stop {
                        flushing.begin();
                        flushed_to_stop = true;
                    }
                    self.wait(BESIDE_FLUSH, limits, || !flushing.is_busy())?;
                }
                Decision::GiveUp => {
                    return Err(Error::TimedOut(
                        self.moving.course.timeout().unwrap_or_default(),
                    ));
                }
                Decision::Iterate(outlook) => {
                    flushed_to_stop = false;
                    if !flushing.is_fresh() && self.only_flush_is_in_the_way(observed, &limits) {
                        flushing.begin();
                    }
                    let pause = pace.after(sent, left, outlook);
                    if outlook == Outlook::Stuck || !pause.is_zero() {
                        warnings.stuck += 1;
                    } else {
                        warnings.stuck = 0;
                    }
                    if warnings.stuck >= WARN_AFTER {
                        self.warn_stuck(&mut warnings, &observed, forecast, limits);
                    }
                    self.wait(pause, limits, || false)?;
                }
            }
            if self.moving.guest.is_some() {
                return Ok(());
            }
            if self.moving.course.control.limits() != limits {
                pace.begin_anew();
            }
            self.pass += 1;
            self.kind = PassKind::Again;
        }
    }

    /// Sends what is dirty and reads the log.
    fn pass(&mut self) -> Result<Passed, Error> {
        let Self {
            moving,
            pass,
            kind,
            dirty,
            log_read,
            rates,
            ..
        } = self;
        let sent = dirty::count(dirty);
        let counters = moving.course.counters.clone();
        let wire_before = counters.wire_bytes();
        let began = Instant::now();
        moving.start_pass(*pass, *kind, std::mem::take(dirty));
        moving.finish_pass(*pass, sent, rates, Until::Placed)?;
        let took = began.elapsed().max(Duration::from_micros(1)).as_secs_f64();
        let wire = counters.wire_bytes() - wire_before;
        let read_before = std::mem::replace(log_read, Instant::now());
        *dirty = moving.fetch_dirty()?;
        let left = dirty::count(dirty);
        let between = (*log_read - read_before).max(Duration::from_micros(1));
        let dirty_pages_per_s = left as f64 / between.as_secs_f64();
        rates.dirty = dirty_pages_per_s * PAGE_SIZE as f64;
        if wire >= MEASURABLE {
            rates.bandwidth = wire as f64 / took;
        }
        let iteration = Iteration {
            n: *pass,
            pages: sent,
            bytes: wire,
            ms: took * 1e3,
            dirty_pages_per_s,
            mib_per_s: wire as f64 / took / f64::from(1 << 20),
        };
        let ms = iteration.ms;
        tracing::debug!(pages = sent, bytes = wire, ms, left, "iteration ended");
        moving.course.report.add_iteration(iteration.clone());
        moving.course.control.emit(Event::Iteration(iteration));
        Ok(Passed { sent, left })
    }

    /// Lets `time` pass between two passes, less if the limits are no longer `limits` or `over` says so.
    /// A time-out may stop the guest meanwhile.
    fn wait(
        &mut self,
        time: Duration,
        limits: Limits,
        over: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let until = Instant::now() + time;
        loop {
            self.moving.check_stop()?;
            match self
                .moving
                .link
                .session
                .next(&self.moving.link.notes, Duration::ZERO)?
            {
                // It said so before the pass began, which the digests will show.
                Some(Note::Message(Message::PassPlaced(done))) => {
                    self.moving.transfer.heard = Some((done.pass, Instant::now()));
                }
                Some(Note::Message(other)) => return Err(other.unexpected("pass-placed")),
                Some(_) | None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            let changed = self.moving.course.control.limits() != limits;
            if left.is_zero() || changed || self.moving.guest.is_some() || over() {
                return Ok(());
            }
            self.moving.course.control.wait_for_change(left.min(SLICE));
        }
    }

    /// Learns what a switch-over costs: once, and again while that keeps it off. Hashing costs more the
    /// more memory the guest has come to use.
    fn measure_costs(&mut self) {
        let hashes = self.moving.course.options.request.verify == Verify::Full;
        if let Some(before) = self.costs_measured {
            let in_the_way =
                self.moving.transfer.costs.total() > self.moving.course.control.limits().downtime;
            if before.elapsed() < MEASURE_AGAIN || !(in_the_way || hashes) {
                return;
            }
        }
        // The shortest round trip counts; should this fail, the link's end is seen elsewhere.
        let _ = self.moving.link.session.ping();
        match self.moving.course.vm.rehearse() {
            Ok(rehearsal) => self.moving.transfer.costs.machine = rehearsal,
            // Then it costs what it cost before, as far as that is known.
            Err(why) => tracing::warn!(id = %why.id, "the switch-over was not rehearsed: {why}"),
        }
        if hashes {
            self.moving.transfer.costs.hashing = self.hashing();
        }
        self.costs_measured = Some(Instant::now());
    }

    /// What hashing all memory takes until both sides are done.
    fn hashing(&self) -> Duration {
        let ours = full_digest::cost(&self.moving.transfer.ram);
        let slower = self
            .moving
            .transfer
            .hash_speeds
            .map_or(1.0, |[ours, theirs]| ours / theirs);
        let theirs = ours.mul_f64(slower.clamp(1e-3, 1e3));
        if self.moving.course.to.is_within_host() {
            // Both use the processors of this host.
            ours + theirs
        } else {
            ours.max(theirs)
        }
    }

    fn only_flush_is_in_the_way(&self, observed: Observed, limits: &Limits) -> bool {
        let observed = Observed {
            overhead: self.moving.transfer.costs.without_flush().total(),
            ..observed
        };
        convergence::decide(&observed, limits, self.moving.course.deadline())
            == Decision::SwitchOver
    }

    /// Warns of a limit that cannot be kept, however little is left to send.
    fn warn_beforehand(&self, warnings: &mut Warnings) {
        let limits = self.moving.course.control.limits();
        let costs = self.moving.transfer.costs.without_flush();
        let is_down_anyway = self.moving.course.vm.run_state() == RunState::Paused;
        if costs.total() > limits.downtime && !is_down_anyway {
            self.warn_limit(warnings, &costs, limits);
        }
    }

    fn warn_limit(&self, warnings: &mut Warnings, costs: &Costs, limits: Limits) {
        if warnings.too_strict.replace(limits) == Some(limits) {
            return;
        }
        let enough = (milliseconds(costs.total()) * 1.5).ceil().max(1.0);
        self.warn(
            "migration.limit-too-strict",
            format!(
                "with nothing left to send the guest would be down for {:.1} ms ({}), and the limit is \
                 {:.1} ms: it is not stopped unless that is raised, as by --set downtime-limit={enough}ms",
                milliseconds(costs.total()),
                costs.describe(),
                milliseconds(limits.downtime),
            ),
        );
    }

    fn warn_stuck(
        &self,
        warnings: &mut Warnings,
        observed: &Observed,
        forecast: Forecast,
        limits: Limits,
    ) {
        if observed.run_state == RunState::Running
            && self.moving.transfer.costs.total() > limits.downtime
        {
            return self.warn_limit(warnings, &self.moving.transfer.costs, limits);
        }
        if warnings.too_strict.replace(limits) == Some(limits) {
            return;
        }
        let mib = f64::from(1 << 20);
        self.warn(
            "migration.not-converging",
            format!(
                "the guest dirties {:.0} MiB/s, {:.0} MiB/s reach the destination: stopped now it \
                 would be down for {:.0} ms, the limit is {:.0} ms",
                observed.dirty_rate / mib,
                observed.bandwidth / mib,
                milliseconds(forecast.downtime),
                milliseconds(limits.downtime),
            ),
        );
    }

    fn warn(&self, id: &str, message: String) {
        let observation = Observation::new(Side::Source, id, message);
        self.moving
            .course
            .control
            .warn(observation.in_phase(Phase::Precopy.name()));
    }
}
