//! Clocks that never go back, on whichever CPU they are read, and a wall clock that nothing sets.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use super::sys::Clock;

/// Readings of the monotonic clock by any number of threads.
#[derive(Debug, Default)]
pub struct Monotonic {
    latest: AtomicU64,
}

impl Monotonic {
    /// Reads the clock and holds it against what any thread had read before.
    ///
    /// # Errors
    /// When it went back, by how much.
    pub fn read(&self) -> Result<u64, String> {
        // What is in here now was read before the next line reads the clock.
        let before = self.latest.load(SeqCst);
        let now = Clock::Monotonic.now();
        self.latest.fetch_max(now, SeqCst);
        if now < before {
            return Err(format!(
                "the monotonic clock went back by {} ns",
                before - now
            ));
        }
        Ok(now)
    }
}

/// Bounds of a difference that should not change, narrowed by every measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The difference is at least this.
    pub low: i64,
    /// The difference is at most this.
    pub high: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            low: i64::MIN,
            high: i64::MAX,
        }
    }
}

impl Bounds {
    /// Of `clock` to another one that was read before and after it.
    pub fn of(clock: u64, before: u64, after: u64) -> Self {
        let difference = |from: u64| clock.wrapping_sub(from) as i64;
        Self {
            low: difference(after),
            high: difference(before),
        }
    }

    /// Both measurements taken together; empty (`low` above `high`) if the difference changed.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        }
    }

    /// By how much at least the difference has changed.
    pub fn change(self) -> u64 {
        u64::try_from(self.low.saturating_sub(self.high)).unwrap_or(0)
    }
}

/// The wall clock against the monotonic one; nobody sets it in this guest, so neither may a move.
#[derive(Debug, Default)]
pub struct Wall {
    offset: Mutex<Bounds>,
}

/// Rounding of two clocks that are computed from one counter.
const TOLERANCE_NS: u64 = 1_000;

impl Wall {
    /// Reads both clocks and holds their difference against that of earlier readings.
    ///
    /// # Errors
    /// When the wall clock was stepped, by how much.
    pub fn read(&self) -> Result<u64, String> {
        let before = Clock::Monotonic.now();
        let now = Clock::Wall.now();
        let after = Clock::Monotonic.now();
        let mut offset = self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        let narrowed = offset.and(Bounds::of(now, before, after));
        if narrowed.change() > TOLERANCE_NS {
            return Err(format!(
                "the wall clock stepped by {} ns",
                narrowed.change()
            ));
        }
        *offset = narrowed;
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_of_a_steady_clock_narrow_its_offset() {
        let first = Bounds::of(1_050, 1_000, 1_020);
        assert_eq!(first, Bounds { low: 30, high: 50 });
        let both = first.and(Bounds::of(2_045, 2_000, 2_010));
        assert_eq!(both, Bounds { low: 35, high: 45 });
        assert_eq!(both.change(), 0);
    }

    #[test]
    fn a_step_of_the_clock_is_found_in_either_direction() {
        let before = Bounds::of(1_050, 1_000, 1_020);
        for (now, step) in [(2_150, 80), (1_950, 80)] {
            assert_eq!(before.and(Bounds::of(now, 2_000, 2_020)).change(), step);
        }
    }

    #[test]
    fn a_clock_that_goes_back_is_found() {
        let clock = Monotonic::default();
        let now = clock.read().unwrap();
        clock.latest.store(now + 3_600_000_000_000, SeqCst);
        assert!(clock.read().is_err());
    }
}
