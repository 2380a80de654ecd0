//! Pre-copy: passes while the guest runs, until it can be stopped within the limit.

use std::cmp::Ordering;
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::course::Failed;
use super::measurement::Measurement;
use super::moving::Moving;
use super::pace::Pace;
use super::passes::{Rates, Until};
use super::retries::Retries;
use super::stopped::Stopped;
use super::warnings::Warnings;
use crate::convergence::{Decision, Observed, Outlook};
use crate::error::Error;
use crate::frames::PassKind;
use crate::progress::{Iteration, Limits, Phase};
use crate::streams::marks::Marks;
use crate::streams::sender::Pass;
use crate::vm::RunState;

/// How long a pass that only awaits the end of a flush may be put off.
const BESIDE_FLUSH: Duration = Duration::from_millis(50);
/// How soon, between passes, the end of the link is seen.
const SLICE: Duration = Duration::from_millis(20);

/// A destination that has built the machine and takes pages, while the guest runs here.
pub(super) struct Copying<'m, 's, 'a> {
    pub moving: Moving<'m, 's, 'a>,
    /// The pass that is next, or was last.
    pub pass: u32,
    /// What the pass sends of disks.
    pub kind: PassKind,
    /// What it sends of memory, and from which pass on.
    pub memory: MemoryTurn,
    /// What is to be sent.
    pub marks: Marks,
    /// What was, and is not known to be placed: the marks of it are taken, and kept here.
    pub under_way: Option<Arc<Pass>>,
    /// When the log was last read: what it shows next was written since.
    pub log_read: Instant,
    pub rates: Rates,
    costs: Measurement,
    warnings: Warnings,
    /// When to try next for a link in place of one that is lost.
    pub retries: Retries,
    pub scope: &'s Scope<'s, 'a>,
}

/// When memory goes: from the first pass on, or when the disks have that go before it.
#[derive(Clone, Copy)]
pub(super) struct MemoryTurn {
    /// The first pass of it.
    from: u32,
    /// The pass in which the link was lost last.
    cut: Option<u32>,
}

impl MemoryTurn {
    fn after_disks(go_first: bool) -> Self {
        Self {
            from: if go_first { 2 } else { 1 },
            cut: None,
        }
    }

    /// The link was lost in `pass`, of which the rest is sent on the next one.
    pub(super) fn cut_in(&mut self, pass: u32) {
        self.cut = Some(pass);
    }

    /// Whether it waits in `pass`.
    fn waits(self, pass: u32) -> bool {
        pass < self.from
    }

    /// Whether all of it is to be sent from `pass` on, and none was before.
    fn begins_late(self, pass: u32) -> bool {
        self.from > 1 && pass == self.from && self.cut != Some(pass)
    }

    /// As what it is sent in `pass`.
    fn kind(self, pass: u32) -> Option<PassKind> {
        match pass.cmp(&self.from) {
            Ordering::Less => None,
            Ordering::Equal if self.cut == Some(pass) => Some(PassKind::Rest),
            Ordering::Equal => Some(PassKind::First),
            Ordering::Greater => Some(PassKind::Again),
        }
    }
}

/// Bytes that a pass sent, and those that were written meanwhile.
struct Passed {
    sent: u64,
    left: u64,
}

impl<'m, 's, 'a> Copying<'m, 's, 'a> {
    /// Nothing is copied yet, and the dirty log is on.
    pub fn new(moving: Moving<'m, 's, 'a>, scope: &'s Scope<'s, 'a>) -> Self {
        let go_first = moving.transfer.disks.go_first();
        Self {
            marks: Marks::all(&moving.transfer.ram, moving.transfer.disks.offers()),
            moving,
            pass: 1,
            kind: PassKind::First,
            memory: MemoryTurn::after_disks(go_first),
            under_way: None,
            log_read: Instant::now(),
            rates: Rates::default(),
            costs: Measurement::default(),
            warnings: Warnings::default(),
            retries: Retries::default(),
            scope,
        }
    }

    /// Copies while the guest runs, until the policy has it stopped.
    pub fn converge(mut self) -> Result<Stopped<'m, 's, 'a>, Failed> {
        self.moving.course.enter(Phase::Precopy);
        let copied = self.copy();
        let stopped = copied.and_then(|()| {
            self.moving.course.enter(Phase::StopAndCopy);
            self.moving.stop()
        });
        match stopped {
            Ok(()) => {
                let late = self.memory.waits(self.pass);
                if late {
                    self.marks.add_all_pages(&self.moving.transfer.ram);
                }
                let memory = if late {
                    PassKind::First
                } else {
                    PassKind::Again
                };
                Ok(Stopped::new(self.moving, self.pass, self.marks, memory))
            }
            Err(error) => Err(self.moving.fail(error)),
        }
    }

    /// Goes through passes until the guest is to be stopped, on one link after the other.
    fn copy(&mut self) -> Result<(), Error> {
        let vm = self.moving.course.vm;
        vm.drop_device_writes()
            .map_err(Error::vm("drop the marks of what devices wrote before"))?;
        self.log_read = Instant::now();
        loop {
            match self.copy_on_link() {
                Err(error) => self.go_on_after(error)?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Goes through passes until the guest is to be stopped, or the link is lost.
    fn copy_on_link(&mut self) -> Result<(), Error> {
        let flushing = self.moving.start_flushing(self.scope)?;
        let mut pace = Pace::default();
        // A flush was begun so that the guest can be stopped after it, however long passes take.
        let mut flushed_to_stop = false;
        loop {
            let _iteration = tracing::info_span!("iteration", n = self.pass).entered();
            self.costs.measure_if_due(&mut self.moving);
            self.warnings.before_pass(&self.moving);
            flushing.begin_if_due();
            self.moving.mirror(&self.rates)?;
            self.moving.leave_rests()?;
            let Passed { sent, left } = self.pass()?;
            if self.moving.is_stopped() {
                return Ok(());
            }
            if self.memory.waits(self.pass) {
                self.pass += 1;
                self.kind = PassKind::Again;
                continue;
            }
            self.moving.transfer.costs.flush = flushing.cost();
            let limits = self.moving.limits();
            let observed = self.observed(left);
            let forecast = self.moving.forecast(&observed, &limits);
            match self.moving.may_stop(&observed, &limits) {
                Decision::SwitchOver => {
                    let is_down_anyway = observed.run_state == RunState::Paused;
                    let is_flushed = flushing.is_fresh() || flushed_to_stop && !flushing.is_busy();
                    if is_flushed || is_down_anyway || self.moving.is_late() {
                        return Ok(());
                    }
                    if !flushed_to_stop {
                        flushing.begin();
                        flushed_to_stop = true;
                    }
                    self.wait(BESIDE_FLUSH, limits, left, || !flushing.is_busy())?;
                }
                Decision::GiveUp => return Err(self.moving.course.timed_out()),
                Decision::Iterate(outlook) => {
                    flushed_to_stop = false;
                    if !flushing.is_fresh() && self.only_flush_is_in_the_way(observed, &limits) {
                        flushing.begin();
                    }
                    let pause = pace.after(sent, left, outlook);
                    let pause = self.moving.while_mirrored(pause);
                    if outlook == Outlook::Stuck || !pause.is_zero() {
                        (self.warnings).no_nearer(&self.moving, &observed, forecast, limits);
                    } else {
                        self.warnings.nearer();
                    }
                    self.wait(pause, limits, left, || false)?;
                }
            }
            if self.moving.is_stopped() {
                return Ok(());
            }
            if self.moving.limits() != limits {
                pace.begin_anew();
            }
            self.pass += 1;
            self.kind = PassKind::Again;
        }
    }

    /// What is known after a pass that left `left` bytes.
    fn observed(&self, left: u64) -> Observed {
        self.moving.observed(self.pass, left, &self.rates)
    }

    /// Sends what is dirty and reads the log.
    fn pass(&mut self) -> Result<Passed, Error> {
        let Self {
            moving,
            pass,
            kind,
            memory,
            marks,
            under_way,
            log_read,
            rates,
            ..
        } = self;
        if memory.begins_late(*pass) {
            marks.add_all_pages(&moving.transfer.ram);
        } else if memory.waits(*pass) {
            marks.leave_pages_out();
        }
        let (sent, pages) = (marks.bytes(), marks.page_count());
        let counters = moving.course.counters.clone();
        let (wire_before, disks_before) = (counters.wire_bytes(), counters.disk_bytes());
        let present_before = counters.present_bytes();
        let began = Instant::now();
        let kinds = (*kind, memory.kind(*pass));
        *under_way = Some(moving.start_pass(*pass, kinds, std::mem::take(marks)));
        moving.finish_pass(*pass, sent, rates, Until::Placed)?;
        *under_way = None;
        let took = began.elapsed().max(Duration::from_micros(1)).as_secs_f64();
        let wire = counters.wire_bytes() - wire_before;
        let read_before = std::mem::replace(log_read, Instant::now());
        *marks = moving.take_marks()?;
        if memory.waits(*pass) {
            // All of it is to go, which is no measure of what was written.
            marks.leave_pages_out();
        }
        let left = marks.bytes();
        let between = (*log_read - read_before).max(Duration::from_micros(1));
        rates.dirty = left as f64 / between.as_secs_f64();
        rates.dirty_pages = marks.page_count() as f64 / between.as_secs_f64();
        rates.passed(wire, took, counters.present_bytes() - present_before);
        let iteration = Iteration {
            n: *pass,
            pages,
            disk_bytes: (!moving.transfer.disks.is_empty())
                .then(|| counters.disk_bytes() - disks_before),
            bytes: wire,
            ms: took * 1e3,
            dirty_pages_per_s: rates.dirty_pages,
            mib_per_s: wire as f64 / took / f64::from(1 << 20),
        };
        let ms = iteration.ms;
        tracing::debug!(pages, bytes = wire, ms, left, "iteration ended");
        moving.course.iteration_ended(iteration);
        Ok(Passed { sent, left })
    }

    /// Lets `time` pass between two passes, the first of which left `left` bytes; less if the limits are no longer
    /// `limits` or `over` says so. A time-out may stop the guest meanwhile.
    fn wait(
        &mut self,
        time: Duration,
        limits: Limits,
        left: u64,
        over: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let until = Instant::now() + time;
        loop {
            let observed = self.observed(left);
            self.moving.check_stop(&observed)?;
            // That a pass is placed may be heard here: it was said before the last one began, which the digests will show.
            self.moving.next(Duration::ZERO)?;
            let rest = until.saturating_duration_since(Instant::now());
            let changed = self.moving.limits() != limits;
            if rest.is_zero() || changed || self.moving.is_stopped() || over() {
                return Ok(());
            }
            self.moving.course.wait_for_change(rest.min(SLICE));
        }
    }

    fn only_flush_is_in_the_way(&self, observed: Observed, limits: &Limits) -> bool {
        let observed = Observed {
            overhead: self.moving.transfer.costs.without_flush().total(),
            ..observed
        };
        self.moving.may_stop(&observed, limits) == Decision::SwitchOver
    }
}
