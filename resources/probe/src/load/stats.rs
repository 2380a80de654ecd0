//! How long requests took, told in lines: since the last interval, and in all.

use super::histogram::{self, Histogram};
use crate::clock::{Clock, tsc};
use crate::lines;

/// Kinds of requests, in the order of their histograms.
#[derive(Clone, Copy)]
pub enum Op {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
}

const OPS: [(Op, &str); 5] = [
    (Op::Read, "read"),
    (Op::Write, "write"),
    (Op::Flush, "flush"),
    (Op::Discard, "discard"),
    (Op::Zeroes, "zeroes"),
];

/// Memory of all histograms.
pub const BYTES: u64 = 2 * OPS.len() as u64 * histogram::BYTES;

/// Lines of one report.
pub const LINES: usize = OPS.len();

/// The requests of a span of time.
pub struct Span {
    since: u64,
    ops: [Histogram; OPS.len()],
}

impl Span {
    fn new(memory: u64) -> Self {
        let at = |i: usize| Histogram::new(memory + i as u64 * histogram::BYTES);
        Self {
            since: tsc(),
            ops: core::array::from_fn(at),
        }
    }

    /// A line for each kind that there was.
    fn print(&self, disk: usize, name: &str, now: u64, clock: &Clock) {
        let us = clock.us(now.wrapping_sub(self.since)).max(1);
        let ns = |cycles: u64| {
            (u128::from(cycles) * 1_000_000 / u128::from(clock.tsc_khz.max(1))) as u64
        };
        for ((_, op), of) in OPS.iter().zip(&self.ops).filter(|(_, of)| of.count > 0) {
            let per_s = |n: u64| (u128::from(n) * 1_000_000 / u128::from(us)) as u64;
            // Room was asked for; where another CPU took it, the total still has these counts.
            let _ = lines::post(format_args!(
                "disk-stats disk={disk} span={name} op={op} ms={} count={} iops={} bytes_s={} \
                 p50_ns={} p99_ns={} p999_ns={} max_ns={}",
                us / 1000,
                of.count,
                per_s(of.count),
                per_s(of.bytes),
                ns(of.quantile(500)),
                ns(of.quantile(990)),
                ns(of.quantile(999)),
                ns(of.max),
            ));
        }
    }
}

pub struct Stats {
    pub interval: Span,
    pub total: Span,
}

impl Stats {
    /// In memory that is nobody else's, [`BYTES`] long.
    pub fn new(memory: u64) -> Self {
        Self {
            interval: Span::new(memory),
            total: Span::new(memory + BYTES / 2),
        }
    }

    /// Both spans begin now: what came before, as filling the region, is in neither.
    pub fn begin(&mut self, now: u64) {
        (self.interval.since, self.total.since) = (now, now);
    }

    pub fn add(&mut self, op: Op, cycles: u64, bytes: u64) {
        self.interval.ops[op as usize].add(cycles, bytes);
    }

    /// Prints the interval, which ends, with at most [`LINES`] lines.
    pub fn end_interval(&mut self, disk: usize, now: u64, clock: &Clock) {
        self.interval.print(disk, "interval", now, clock);
        for (total, interval) in self.total.ops.iter_mut().zip(&mut self.interval.ops) {
            total.take(interval);
        }
        self.interval.since = now;
    }

    /// Prints all that intervals held so far.
    pub fn print_total(&self, disk: usize, now: u64, clock: &Clock) {
        self.total.print(disk, "total", now, clock);
    }
}
