//! When to try for a new link, after one is lost.

use std::time::{Duration, Instant};

/// The pause after a first attempt that failed.
const SHORTEST: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(1);
/// A link that stood for so long was one: the next one is tried for at once.
const STOOD: Duration = Duration::from_secs(1);

/// Attempts, the pauses between which grow as long as no link stands for a while.
#[derive(Debug, Default)]
pub(super) struct Retries {
    pause: Duration,
    /// When the link was made, if it was.
    made: Option<Instant>,
}

impl Retries {
    /// A link is lost `now`: how long to wait before the first attempt.
    pub fn lost(&mut self, now: Instant) -> Duration {
        let stood = self.made.is_none_or(|made| now - made >= STOOD);
        if stood {
            self.pause = Duration::ZERO;
        }
        self.pause
    }

    /// An attempt has failed: how long to wait before the next.
    pub fn failed(&mut self) -> Duration {
        self.grow();
        self.pause
    }

    /// There is a link, since `now`.
    pub fn made(&mut self, now: Instant) {
        self.made = Some(now);
        self.grow();
    }

    fn grow(&mut self) {
        self.pause = (self.pause * 2).clamp(SHORTEST, LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_do_not_stand_are_tried_for_more_and_more_seldom() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        assert_eq!(retries.lost(now), Duration::ZERO);
        assert_eq!(retries.failed(), SHORTEST);
        assert_eq!(retries.failed(), SHORTEST * 2);
        retries.made(now);
        assert_eq!(retries.lost(now + STOOD / 2), SHORTEST * 4);
        retries.made(now + STOOD);
        assert_eq!(retries.lost(now + STOOD * 2), Duration::ZERO);
        let pauses = (0..20).map(|_| retries.failed());
        assert_eq!(pauses.max(), Some(LONGEST));
    }
}
