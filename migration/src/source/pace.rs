//! How fast passes may follow each other that bring the end no nearer.

use std::time::Duration;

use crate::convergence::Outlook;

/// Before the first pass of which nothing is expected.
const SHORTEST: Duration = Duration::from_millis(20);
/// Before one when many before it brought nothing.
const LONGEST: Duration = Duration::from_secs(1);

/// Doubles the pause from one hopeless pass to the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pause: Duration,
}

impl Pace {
    /// How long to wait after a pass that sent `sent` pages and left `left`. One that left clearly less
    /// than it sent is followed at once: after a pause a few such are needed to get back to the least
    /// that can be left.
    pub fn after(&mut self, sent: u64, left: u64, outlook: Outlook) -> Duration {
        if outlook == Outlook::Improving {
            self.begin_anew();
            return Duration::ZERO;
        }
        if left.saturating_mul(8) < sent.saturating_mul(7) {
            return Duration::ZERO;
        }
        self.pause = (self.pause * 2).clamp(SHORTEST, LONGEST);
        self.pause
    }

    /// Something changed, so that a pass may bring something again.
    pub fn begin_anew(&mut self) {
        self.pause = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_bring_nothing_become_rare() {
        let mut pace = Pace::default();
        let mut waited = Duration::ZERO;
        let passes = (0..).take_while(|_| {
            waited += pace.after(100, 100, Outlook::Stuck);
            waited < Duration::from_secs(80)
        });
        assert!(passes.count() < 100);
    }

    #[test]
    fn what_shrinks_is_sent_at_once_and_nothing_is_hurried_that_cannot_shrink() {
        let mut pace = Pace::default();
        for (sent, left) in [(1000, 500), (500, 400), (1, 0)] {
            for outlook in [Outlook::Stuck, Outlook::Converging] {
                assert_eq!(pace.after(sent, left, outlook), Duration::ZERO);
            }
        }
        assert_eq!(pace.after(0, 0, Outlook::Stuck), SHORTEST);
        assert_eq!(pace.after(100, 99, Outlook::Converging), SHORTEST * 2);
        // After a pause there is more to send, in a few passes.
        assert_eq!(pace.after(5000, 600, Outlook::Stuck), Duration::ZERO);
        assert_eq!(pace.after(600, 600, Outlook::Stuck), SHORTEST * 4);
        assert_eq!(pace.after(600, 600, Outlook::Improving), Duration::ZERO);
        assert_eq!(pace.after(600, 600, Outlook::Stuck), SHORTEST);
    }
}
