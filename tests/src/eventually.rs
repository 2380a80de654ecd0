//! Waiting for a condition instead of sleeping for luck.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `condition` until it gives a value, which is returned; `None` once `deadline` has passed.
///
/// The condition is looked at once more after the deadline, so that a machine that slept through it
/// does not fail a test whose condition holds.
pub fn eventually<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        let last_try = Instant::now() >= end;
        if let Some(value) = condition() {
            return Some(value);
        }
        if last_try {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_returned_as_soon_as_there_is_one() {
        let mut left = 3;
        let got = eventually(Duration::from_secs(60), || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(got, Some("done"));
    }

    #[test]
    fn condition_that_never_holds_ends_at_the_deadline() {
        assert_eq!(eventually(Duration::from_millis(30), || None::<()>), None);
    }

    #[test]
    fn condition_is_looked_at_even_when_the_deadline_is_now() {
        assert_eq!(eventually(Duration::ZERO, || Some(1)), Some(1));
    }
}
