//! What is watched beside a move: the guest's writes, the host's page cache, and the bytes that went
//! over.

use std::time::Duration;

use machine::probe::DiskStats;

use super::error::BenchError;
use super::guest::{ANSWER, Guest};
use super::link::Link;
use super::proc;
use super::stats::Samples;

/// Longest that a guest may take to end an interval.
const PATIENCE: Duration = ANSWER;
/// The guest's requests that are watched.
const OP: &str = "write";

/// What was there right before a move.
pub(super) struct Watch {
    writes: bool,
    intervals: usize,
    page_cache: u64,
    carried: Option<u64>,
}

/// What a move did beside moving.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Beside {
    /// 99 of 100 writes of the guest took no longer: the median over intervals during the move.
    pub write_p99_ms: Option<f64>,
    /// The longest write in these.
    pub write_max_ms: Option<f64>,
    /// Writes a second in these.
    pub writes_per_s: Option<f64>,
    /// By how much the host's page cache grew; less than 0 where it shrank.
    pub page_cache_growth_bytes: f64,
    /// Bytes that went over the link both ways, headers included; `None` where others use it too.
    pub carried_bytes: Option<u64>,
}

impl Watch {
    /// Begins right before the request. A guest with disks has counted its writes for a while then.
    pub fn begin(guest: &mut Guest, link: &Link, writes: bool) -> Result<Self, BenchError> {
        if writes {
            guest.disk_interval(OP, 0, PATIENCE)?;
        }
        Ok(Self {
            writes,
            intervals: guest.disk_intervals(OP).len(),
            page_cache: proc::page_cache()?,
            carried: link.carried()?,
        })
    }

    /// Ends as soon as the guest has been moved from `source`. Of a move that is shorter than an interval,
    /// the one counts that the guest ends at the destination.
    pub fn end(
        self,
        source: &Guest,
        destination: &mut Guest,
        link: &Link,
    ) -> Result<Beside, BenchError> {
        let mut beside = self.ended(link)?;
        let during = source.disk_intervals(OP);
        let mut during: Vec<_> = during.into_iter().skip(self.intervals).collect();
        if during.is_empty() && self.writes {
            during.push(destination.disk_interval(OP, 0, PATIENCE)?);
        }
        beside.note(during);
        Ok(beside)
    }

    /// The same where the guest stays where it is.
    pub fn end_in_place(self, guest: &mut Guest, link: &Link) -> Result<Beside, BenchError> {
        let mut beside = self.ended(link)?;
        let mut during: Vec<_> = guest.disk_intervals(OP);
        during.drain(..self.intervals.min(during.len()));
        if during.is_empty() && self.writes {
            during.push(guest.disk_interval(OP, self.intervals, PATIENCE)?);
        }
        beside.note(during);
        Ok(beside)
    }

    fn ended(&self, link: &Link) -> Result<Beside, BenchError> {
        let carried = link.carried()?;
        let bytes = carried.zip(self.carried);
        Ok(Beside {
            page_cache_growth_bytes: proc::page_cache()? as f64 - self.page_cache as f64,
            carried_bytes: bytes.map(|(after, before)| after.saturating_sub(before)),
            ..Beside::default()
        })
    }
}

impl Beside {
    /// Sums up the intervals of a move.
    fn note(&mut self, mut during: Vec<DiskStats>) {
        // The first of several began before the request.
        if during.len() > 1 {
            during.remove(0);
        }
        let ms = |ns: u64| ns as f64 / 1e6;
        let median = |of: fn(&DiskStats) -> u64| {
            Samples::of(&during, |interval| of(interval) as f64).map(|samples| samples.median)
        };
        self.write_p99_ms = median(|interval| interval.p99_ns).map(|ns| ns / 1e6);
        self.writes_per_s = median(|interval| interval.iops);
        let longest = during.iter().map(|interval| interval.max_ns).max();
        self.write_max_ms = longest.map(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_the_move_does_not_count_where_there_is_more() {
        let interval = |p99_ms: u64, max_ms: u64| DiskStats {
            disk: 0,
            span: "interval".to_owned(),
            op: OP.to_owned(),
            ms: 500,
            count: 5 * p99_ms,
            iops: 10 * p99_ms,
            bytes_s: 40960 * p99_ms,
            p50_ns: 500_000 * p99_ms,
            p99_ns: 1_000_000 * p99_ms,
            p999_ns: 1_000_000 * max_ms,
            max_ns: 1_000_000 * max_ms,
        };
        let mut beside = Beside::default();
        beside.note(vec![
            interval(90, 90),
            interval(2, 8),
            interval(3, 5),
            interval(4, 4),
        ]);
        assert_eq!(beside.write_p99_ms, Some(3.0));
        assert_eq!(beside.write_max_ms, Some(8.0));
        assert_eq!(beside.writes_per_s, Some(30.0));
        beside.note(vec![interval(90, 91)]);
        assert_eq!(beside.write_p99_ms, Some(90.0));
        beside.note(Vec::new());
        assert_eq!(beside.write_p99_ms, None);
    }
}
