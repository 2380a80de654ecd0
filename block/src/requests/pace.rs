//! How long requests took lately.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::Action;

/// Longer requests count as this long, so that one that hung is forgotten after some tens of others.
const LONGEST: Duration = Duration::from_millis(10);
/// How much a new figure weighs: one part in so many.
const WEIGHT: i64 = 8;

/// A moving average for each kind of request, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Pace([AtomicU32; 4]);

impl Pace {
    fn of(&self, action: Action) -> &AtomicU32 {
        &self.0[match action {
            Action::Read { .. } => 0,
            Action::Write { .. } => 1,
            Action::Flush => 2,
            Action::Discard { .. } | Action::WriteZeroes { .. } => 3,
        }]
    }

    /// Whether such requests took less than `limit`; so they are taken to do before the first has ended.
    pub(crate) fn is_within(&self, action: Action, limit: Duration) -> bool {
        u128::from(self.of(action).load(Ordering::Relaxed)) < limit.as_nanos()
    }

    /// Counts a request. Of several at once one may get lost, which does no harm.
    pub(crate) fn note(&self, action: Action, took: Duration) {
        let average = self.of(action);
        let before = i64::from(average.load(Ordering::Relaxed));
        // At most 10^7.
        let took = took.min(LONGEST).as_nanos() as i64;
        let now = before + (took - before) / WEIGHT;
        average.store(u32::try_from(now).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_request_is_forgotten_and_many_are_not() {
        let pace = Pace::default();
        let (limit, short) = (Duration::from_micros(100), Duration::from_micros(5));
        assert!(pace.is_within(Action::Flush, limit));
        pace.note(Action::Flush, Duration::from_secs(60));
        assert!(!pace.is_within(Action::Flush, limit));
        assert!(pace.is_within(Action::Read { offset: 0 }, limit));
        for _ in 0..50 {
            pace.note(Action::Flush, short);
        }
        assert!(pace.is_within(Action::Flush, limit));
        for _ in 0..50 {
            pace.note(Action::Flush, Duration::from_millis(3));
        }
        assert!(!pace.is_within(Action::Flush, Duration::from_millis(2)));
    }
}
