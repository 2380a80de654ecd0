//! The loop body that every CPU runs: its stripe of dirtying and verifying, and its gap.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{Clock, tsc};
use crate::content::{self, Fill};
use crate::gate;
use crate::ledger::Ledger;
use crate::memory::{MAX_RANGES, PAGE, Range};
use crate::shared::{CPUS, Cpu, fault};

/// What all CPUs work on; complete before any of them begins.
#[derive(Clone, Copy)]
pub struct Plan {
    pub clock: Clock,
    pub cpus: u64,
    pub fill: Fill,
    pub seed: u64,
    pub filled: [Range; MAX_RANGES],
    pub ledger: u64,
    pub ledger_pages: u64,
    pub table: u64,
    pub working_pages: u64,
    pub rate: u64,
    pub dirty_random: bool,
    pub dirty_cpl0: bool,
    pub halt: bool,
}

pub struct Worker {
    plan: Plan,
    shared: &'static Cpu,
    ledger: Ledger,
    fill_cursor: u64,
    fill_pages: u64,
    rate: u64,
    paced_from: u64,
    paced_pages: u64,
    last_pass: u64,
    index: usize,
    last_mono: u64,
}

/// Part `index` of `total` split in `parts`: first and count.
fn stripe(total: u64, parts: u64, index: u64) -> (u64, u64) {
    let first = total * index / parts;
    (first, total * (index + 1) / parts - first)
}

impl Worker {
    pub fn new(plan: Plan, index: usize) -> Self {
        let index_u64 = index as u64;
        let (first, pages) = stripe(plan.ledger_pages, plan.cpus, index_u64);
        let (_, working) = stripe(plan.working_pages, plan.cpus, index_u64);
        // A page of the table is written by one CPU only.
        let table = plan.table + (first * 4).next_multiple_of(PAGE) + index_u64 * PAGE;
        let ledger = Ledger::new(
            plan.ledger + first * PAGE,
            table,
            pages,
            working,
            plan.dirty_random,
            plan.dirty_cpl0,
        );
        let (_, rate) = stripe(plan.rate, plan.cpus, index_u64);
        let total: u64 = plan.filled.iter().map(|range| range.len() / PAGE).sum();
        let (fill_first, fill_pages) = stripe(total, plan.cpus, index_u64);
        let mut worker = Self {
            plan,
            shared: &CPUS[index],
            ledger,
            fill_cursor: 0,
            fill_pages,
            rate,
            paced_from: 0,
            paced_pages: 0,
            last_pass: 0,
            index,
            last_mono: 0,
        };
        worker.fill(fill_first);
        let now = tsc();
        worker.paced_from = now;
        worker.last_pass = now;
        worker.fill_cursor = fill_first;
        worker
    }

    fn fill(&self, first: u64) {
        let plan = &self.plan;
        self.ledger.fill(plan.fill, plan.seed);
        if plan.fill != Fill::None {
            for i in first..first + self.fill_pages {
                let page = self.page(i);
                content::write(plan.fill, plan.seed, page / PAGE, page);
            }
        }
    }

    /// Address of filled page `i`.
    fn page(&self, mut i: u64) -> u64 {
        for range in &self.plan.filled {
            let pages = range.len() / PAGE;
            if i < pages {
                return range.start + i * PAGE;
            }
            i -= pages;
        }
        0
    }

    /// One pass: cycles since the pass before.
    pub fn pass(&mut self) -> u64 {
        let now = tsc();
        if now < self.last_pass {
            fault("tsc-back", self.index as u64, self.last_pass, now);
        }
        let gap = now.saturating_sub(self.last_pass);
        self.last_pass = now;
        self.check_clock();
        self.shared.gap.fetch_max(gap, Ordering::Relaxed);
        self.dirty(now);
        let pages = if self.plan.halt { 32 } else { 4 };
        let verified = self.ledger.verify(pages);
        self.shared
            .ledger_verified
            .fetch_add(verified, Ordering::Relaxed);
        self.verify_fill(pages);
        gap
    }

    /// The time never goes back: not on this CPU, and where all share one, on none.
    fn check_clock(&mut self) {
        static LATEST: AtomicU64 = AtomicU64::new(0);
        let seen = LATEST.load(Ordering::Acquire);
        let (mono, shared) = self.plan.clock.mono_ns_of(self.index);
        let before = if shared {
            seen.max(self.last_mono)
        } else {
            self.last_mono
        };
        if mono < before {
            fault("clock-back", self.index as u64, before, mono);
        }
        self.last_mono = mono;
        LATEST.fetch_max(mono, Ordering::AcqRel);
    }

    /// Forgets the time until now: not a gap of the loop.
    pub fn restart_gap(&mut self) {
        self.last_pass = tsc();
    }

    fn dirty(&mut self, now: u64) {
        if self.rate == 0 || self.ledger.working_set == 0 {
            return;
        }
        let hz = self.plan.clock.tsc_khz * 1000;
        let passed = now.wrapping_sub(self.paced_from);
        if passed > hz {
            self.paced_from = now;
            self.paced_pages = 0;
            return;
        }
        let due = passed * self.rate / hz;
        let behind = due.saturating_sub(self.paced_pages);
        // What was missed while the guest stood still is not made up for.
        if behind > (self.rate / 10).max(16) {
            self.paced_from = now;
            self.paced_pages = 0;
            return;
        }
        // A halting CPU wakes a thousand times a second and does more at a time.
        for _ in 0..if self.plan.halt { 16 } else { 1 } {
            let left = due.saturating_sub(self.paced_pages);
            if left == 0 {
                break;
            }
            let done = self.ledger.dirty(left);
            self.paced_pages += done;
            self.shared.dirtied.fetch_add(done, Ordering::Relaxed);
        }
    }

    fn verify_fill(&mut self, count: u64) {
        let plan = self.plan;
        if plan.fill == Fill::None || self.fill_pages == 0 {
            return;
        }
        let total: u64 = plan.filled.iter().map(|range| range.len() / PAGE).sum();
        let index = self.shared as *const Cpu as usize - CPUS.as_ptr() as usize;
        let (first, _) = stripe(total, plan.cpus, (index / size_of::<Cpu>()) as u64);
        for _ in 0..count {
            let page = self.page(self.fill_cursor);
            if let Some((gpa, expected, found)) =
                content::verify(plan.fill, plan.seed, page / PAGE, page)
            {
                fault("fill", gpa, expected, found);
                // Told once: the page counts as good again from here.
                content::write(plan.fill, plan.seed, page / PAGE, page);
            }
            self.fill_cursor += 1;
            if self.fill_cursor == first + self.fill_pages {
                self.fill_cursor = first;
            }
        }
        self.shared
            .fill_verified
            .fetch_add(count, Ordering::Relaxed);
    }

    /// Waits as `idle=` says: not at all, or 1 ms when it dirties and 10 ms when it does not.
    pub fn wait(&self, shorter: bool) {
        if self.plan.halt {
            gate::halt(if self.rate > 0 || shorter {
                1_000_000
            } else {
                10_000_000
            });
        } else {
            core::hint::spin_loop();
        }
    }
}
