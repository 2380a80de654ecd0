//! One load: which request comes next, and what follows from one that is done.
//!
//! Requests that touch the same unit are not in flight together, unless both read: what each unit must
//! hold is known exactly. A change that fails is asked for again until it succeeds; so changes up to
//! some number are done, and that number tells all.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::counts::{Counts, Told};
use super::disk::{Disk, Seen};
use super::options::{Acknowledge, LoadOptions};
use super::pace::Pacer;
use super::slot::{Slot, Stage, Work};
use super::slots::{PLACES, Slots};
use super::stats::{LINES, Op, Stats};
use crate::clock::{Clock, tsc};
use crate::lines;
use crate::shared::Cpu;
use crate::units::{Change, Kind, Pattern, Script, mix};

/// Requests that one poll completes, and that it makes, at most: a poll is short.
const BATCH: usize = 16;
/// Microseconds until a request that failed is made again.
const AGAIN_US: u64 = 100_000;
/// Draws for a place that no request in flight touches.
const DRAWS: usize = 8;

/// All loads are to end.
pub static STOP: AtomicBool = AtomicBool::new(false);
/// How often a look at the whole region was asked for.
pub static VERIFY: AtomicU64 = AtomicU64::new(0);

/// What a load does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Writes all of the region.
    Fill,
    /// What its options say.
    Run,
    /// Looks at all of the region; does it rest then?
    Verify { last: bool },
    /// All requests were made; it looks at the region when it is asked to.
    Rest,
    /// No further request.
    Ended,
    /// And that was told.
    Told,
}

/// What was decided and could not be done yet.
#[derive(Clone, Copy)]
enum Next {
    Read,
    Verify,
    Change(Change),
}

pub struct Load {
    pub disk: Disk,
    pub options: LoadOptions,
    pub clock: Clock,
    pub script: Script,
    pub stats: Stats,
    shared: &'static Cpu,
    slots: &'static mut Slots,
    flush_place: usize,
    phase: Phase,
    next: Option<Next>,
    pacer: Pacer,
    requests: u64,
    read_at: u64,
    /// Where looking at the region one part after the other has come.
    cursor: u64,
    pass: Seen,
    asked: u64,
    flushed: u64,
    unflushed: u64,
    flushed_at: u64,
    report_at: u64,
    total_told: bool,
    counts: Counts,
}

impl Load {
    /// A load of at most `depth` requests, for which the ring has places, and one for a flush.
    pub fn new(
        disk: Disk,
        options: LoadOptions,
        clock: Clock,
        script: Script,
        stats: Stats,
        slots: &'static mut Slots,
        shared: &'static Cpu,
    ) -> Self {
        let now = tsc();
        Self {
            flush_place: options.depth,
            pacer: Pacer::new(options.pace, &clock),
            report_at: now + clock.cycles_of_us(options.interval_ms * 1000),
            disk,
            options,
            clock,
            script,
            stats,
            shared,
            slots,
            phase: Phase::Fill,
            next: None,
            requests: 0,
            read_at: 0,
            cursor: 0,
            pass: Seen::default(),
            asked: 0,
            flushed: 0,
            unflushed: 0,
            flushed_at: now,
            total_told: false,
            counts: Counts::default(),
        }
    }

    /// Takes what is done and makes what is due; never waits. False when it has ended.
    pub fn poll(&mut self) -> bool {
        if self.phase == Phase::Told {
            return false;
        }
        for _ in 0..BATCH {
            let Some(place) = self.disk.ring.take() else {
                break;
            };
            self.completed(place);
        }
        let now = tsc();
        self.ask_again(now);
        for _ in 0..BATCH {
            let Some(place) = self.slots.free(self.options.depth) else {
                break;
            };
            if !self.submit(place, now) {
                break;
            }
        }
        self.flush_if_due(now);
        self.disk.ring.notify();
        self.report(now);
        true
    }

    /// All changes up to this one are acknowledged.
    fn acknowledged(&self) -> u64 {
        let newest = match self.next {
            Some(Next::Change(change)) => change.sequence - 1,
            _ => self.script.sequence,
        };
        self.slots.settled(newest)
    }

    fn start(&mut self, place: usize, work: Work) {
        let now = tsc();
        let mut slot = Slot {
            work,
            stage: Stage::Transfer,
            since: now,
            stage_since: now,
            again_at: None,
            told: false,
        };
        self.disk.put(place, &mut slot, now);
        self.slots.set(place, Some(slot));
    }

    fn ask_again(&mut self, now: u64) {
        for place in 0..PLACES {
            if let Some(slot) = self.slots.at_mut(place)
                && slot.again_at.is_some_and(|at| now >= at)
            {
                self.disk.put(place, slot, now);
            }
        }
    }

    fn completed(&mut self, place: usize) {
        let now = tsc();
        let slot = self.slots.at_mut(place);
        let Some(slot) = slot.filter(|slot| slot.again_at.is_none()) else {
            self.disk.fault("disk-queue", 0, 0, place as u64);
            return;
        };
        let status = self.disk.control(place).status();
        let (first, units) = slot.work.range();
        if status != 0 {
            slot.again_at = Some(now + self.clock.cycles_of_us(AGAIN_US));
            self.counts.errors += 1;
            if !core::mem::replace(&mut slot.told, true) {
                let kind = match slot.work.op() {
                    _ if slot.stage == Stage::Flush => "disk-flush-error",
                    Op::Flush => "disk-flush-error",
                    Op::Read => "disk-read-error",
                    Op::Write => "disk-write-error",
                    Op::Discard => "disk-discard-error",
                    Op::Zeroes => "disk-zeroes-error",
                };
                let sector = self.disk.sector_of(first);
                self.disk.fault(kind, sector, 0, status.into());
            }
            return;
        }
        if slot.stage == Stage::Flush {
            let took = now.wrapping_sub(slot.stage_since);
            self.stats.add(Op::Flush, took, 0);
        } else if let Work::Change(_) = slot.work
            && self.options.acknowledge == Acknowledge::Flush
        {
            slot.stage = Stage::Flush;
            self.disk.put(place, slot, now);
            return;
        }
        let slot = *slot;
        self.slots.set(place, None);
        if self.phase != Phase::Fill {
            let bytes = units * self.disk.unit;
            let took = now.wrapping_sub(slot.since);
            self.stats.add(slot.work.op(), took, bytes);
        }
        match slot.work {
            Work::Read { first, units } => self.read(place, first, units),
            Work::Change(change) => self.changed(change),
            Work::Flush { floor } => self.flushed = self.flushed.max(floor),
        }
    }

    fn read(&mut self, place: usize, first: u64, units: u64) {
        let seen = self.disk.verify(place, first, units);
        self.counts.read += units;
        self.counts.verified += units - seen.unknown;
        self.counts.faults += seen.faults;
        self.pass.add(seen);
        self.shared
            .units_verified
            .fetch_add(units - seen.unknown, Ordering::Relaxed);
    }

    fn changed(&mut self, change: Change) {
        let Change {
            sequence,
            kind,
            first,
            units,
        } = change;
        self.disk.changed(kind, first, units, sequence);
        if kind == Kind::Write {
            self.counts.written += units;
            self.shared
                .units_written
                .fetch_add(units, Ordering::Relaxed);
        }
        match self.options.acknowledge {
            Acknowledge::Write => self.unflushed += 1,
            // All that is acknowledged was flushed.
            Acknowledge::Flush => self.flushed = self.acknowledged(),
        }
    }

    fn flush_if_due(&mut self, now: u64) {
        if self.unflushed == 0 || self.slots.at(self.flush_place).is_some() {
            return;
        }
        let since = now.wrapping_sub(self.flushed_at);
        let ending = self.phase == Phase::Verify { last: true };
        let due = self.options.flush.is_some_and(|n| self.unflushed >= n)
            || self
                .options
                .flush_ms
                .is_some_and(|ms| since >= self.clock.cycles_of_us(ms * 1000))
            || (self.options.flushes() && ending);
        if due {
            (self.unflushed, self.flushed_at) = (0, now);
            let floor = self.acknowledged();
            self.start(self.flush_place, Work::Flush { floor });
        }
    }

    /// Makes the next request; false when there is none now.
    fn submit(&mut self, place: usize, now: u64) -> bool {
        let stop = STOP.load(Ordering::Relaxed);
        let asked = VERIFY.load(Ordering::Relaxed);
        match self.phase {
            Phase::Fill => {
                if self.script.sequence < self.script.fills() && !stop {
                    return match self.script.next() {
                        Some(change) => self.change(place, change),
                        None => false,
                    };
                }
                if self.slots.idle() {
                    self.phase = Phase::Run;
                    self.stats.begin(now);
                    self.report_at = now + self.clock.cycles_of_us(self.options.interval_ms * 1000);
                }
                false
            }
            Phase::Rest => {
                if stop || asked != self.asked {
                    self.turn(stop, true, asked);
                }
                false
            }
            Phase::Run => {
                let enough = self.options.count.is_some_and(|n| self.requests >= n);
                if self.next.is_none() && (stop || enough || asked != self.asked) {
                    if self.slots.idle() {
                        self.turn(stop, enough, asked);
                    }
                    return false;
                }
                if stop || !self.pacer.due(now) {
                    // What was decided counts as submitted, and is seen through.
                    return stop && self.decided(place);
                }
                if self.next.is_none() {
                    self.decide();
                }
                self.decided(place)
            }
            Phase::Verify { .. } => {
                let left = self.disk.table.units - self.cursor;
                let units = left.min(self.disk.stride / self.disk.unit);
                if stop || units == 0 {
                    return false;
                }
                let first = self.cursor;
                self.cursor += units;
                self.start(place, Work::Read { first, units });
                true
            }
            Phase::Ended | Phase::Told => false,
        }
    }

    /// Nothing is in flight, and the load does something else from here on.
    fn turn(&mut self, stop: bool, enough: bool, asked: u64) {
        if stop {
            self.phase = Phase::Ended;
            return;
        }
        self.asked = asked;
        self.phase = Phase::Verify { last: enough };
        (self.cursor, self.pass) = (0, Seen::default());
    }

    fn decide(&mut self) {
        self.requests += 1;
        let share = mix(self.script.seed ^ 0x6f70, self.requests) % 100;
        let LoadOptions {
            reads, verifies, ..
        } = self.options;
        self.next = if share < reads {
            Some(Next::Read)
        } else if share < reads + verifies {
            Some(Next::Verify)
        } else {
            self.script.next().map(Next::Change)
        };
    }

    /// Does what was decided; false when it must wait for a request in flight.
    fn decided(&mut self, place: usize) -> bool {
        let done = match self.next {
            None => false,
            Some(Next::Read) => self.read_somewhere(place),
            Some(Next::Verify) => self.read_in_turn(place),
            Some(Next::Change(change)) => {
                let (first, units) = (change.first, change.units);
                !self.slots.touched(first, units) && self.change(place, change)
            }
        };
        if done {
            self.next = None;
            let units = self.slots.at(place).map_or(0, |slot| slot.work.range().1);
            let bytes = units * self.disk.unit;
            self.pacer.spend(bytes, tsc());
        }
        done
    }

    fn change(&mut self, place: usize, change: Change) -> bool {
        if change.kind == Kind::Write {
            let flushed = self.flushed;
            self.disk
                .compose(place, change.first, change.units, change.sequence, flushed);
        }
        self.start(place, Work::Change(change));
        true
    }

    fn read_somewhere(&mut self, place: usize) -> bool {
        let random = mix(self.script.seed ^ 0x7264, self.requests);
        let units = self.script.sizes.choose(random);
        let first = match self.options.pattern {
            Pattern::Sequential => {
                if self.read_at + units > self.script.units {
                    self.read_at = 0;
                }
                let first = self.read_at;
                (!self.slots.changed(first, units)).then_some(first)
            }
            Pattern::Random => (1..=DRAWS as u64)
                .map(|draw| self.script.place(mix(random, draw), units))
                .find(|&first| !self.slots.changed(first, units)),
        };
        let Some(first) = first else {
            return false;
        };
        self.read_at = first + units;
        self.start(place, Work::Read { first, units });
        true
    }

    fn read_in_turn(&mut self, place: usize) -> bool {
        if self.cursor >= self.script.units {
            self.cursor = 0;
        }
        let first = self.cursor;
        let units = self.options.largest().min(self.script.units - first);
        if self.slots.changed(first, units) {
            return false;
        }
        self.cursor += units;
        self.start(place, Work::Read { first, units });
        true
    }

    fn report(&mut self, now: u64) {
        const END: usize = 2 * LINES + 2;
        match self.phase {
            Phase::Verify { .. } if self.slots.idle() && STOP.load(Ordering::Relaxed) => {
                self.phase = Phase::Ended;
            }
            Phase::Verify { last } if self.slots.idle() && self.cursor == self.script.units => {
                if lines::room(END) && self.print_pass() {
                    self.phase = if last { Phase::Rest } else { Phase::Run };
                    if last {
                        self.print(true, now);
                    }
                }
            }
            Phase::Ended if lines::room(END) => {
                self.print(true, now);
                self.phase = Phase::Told;
            }
            Phase::Ended | Phase::Told | Phase::Rest => {}
            _ if now >= self.report_at && lines::room(LINES + 1) => {
                self.report_at = now + self.clock.cycles_of_us(self.options.interval_ms * 1000);
                self.print(false, now);
            }
            _ => {}
        }
    }

    /// Tells the pass that is done; false when there was no room.
    fn print_pass(&mut self) -> bool {
        let Seen {
            units,
            blank,
            unknown,
            faults,
        } = self.pass;
        let pass = self.counts.passes + 1;
        let posted = lines::post(format_args!(
            "disk-verify disk={} pass={pass} units={units} blank={blank} unknown={unknown} \
             faults={faults} sequence={}",
            self.disk.number, self.script.sequence
        ));
        if posted {
            self.counts.passes = pass;
        }
        posted
    }

    fn print(&mut self, end: bool, now: u64) {
        let number = self.disk.number;
        self.counts.print(&Told {
            disk: number,
            end,
            submitted: self.script.sequence,
            acknowledged: self.acknowledged(),
            flushed: self.flushed,
            in_flight: self.slots.in_flight(),
        });
        if self.phase == Phase::Fill {
            return;
        }
        self.stats.end_interval(number, now, &self.clock);
        if end && !core::mem::replace(&mut self.total_told, true) {
            self.stats.print_total(number, now, &self.clock);
        }
    }
}
