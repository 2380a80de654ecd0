//! When a copy that follows its disk is to end: decided from what was measured, and nothing else.

use std::time::Duration;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Bytes that were written since the last pass began.
    pub left: u64,
    /// Bytes that were left when it began.
    pub before: u64,
    /// Bytes a second that are copied when nothing holds the copy up.
    pub rate: f64,
    /// What the end costs beside copying: the target's flush and the record of the decision.
    pub fixed: Duration,
}

/// How long passes that bring nothing are gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest that requests may have to wait at the end.
    pub limit: Duration,
    /// How long passes have left as much as they found.
    pub in_vain: Duration,
    /// For how long they may, before the copy is given up.
    pub most: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Stop requests and copy what is left, at most so many bytes.
    End {
        /// Bytes.
        most: u64,
    },
    /// Copy what has changed.
    Pass,
    /// The disk is written faster than it is copied.
    GiveUp,
}

/// The end is worth no more passes when it takes no longer than this.
const SHORT: Duration = Duration::from_millis(5);
/// Passes have to bring nothing for so long before as much as the limit allows is left for the end.
const SETTLED: Duration = Duration::from_millis(300);
/// Passes that leave more than this part of what they found bring nothing.
const SHRINKS: f64 = 0.8;
/// So little is copied whatever was measured.
const LITTLE: u64 = 256 << 10;

impl Figures {
    /// How long requests would have to wait, were this the end.
    pub fn forecast(&self) -> Duration {
        let seconds = self.left as f64 / self.rate.max(1.0);
        // An hour stands for all that is longer.
        self.fixed + Duration::from_secs_f64(seconds.min(3600.0))
    }

    /// Whether the last pass left about as much as it found.
    pub fn is_in_vain(&self) -> bool {
        self.left as f64 > self.before as f64 * SHRINKS
    }

    /// Bytes that can be copied within `limit`.
    fn fit(&self, limit: Duration) -> u64 {
        let time = limit.saturating_sub(self.fixed).as_secs_f64();
        ((self.rate * time) as u64).max(LITTLE)
    }
}

/// What to do after a pass.
pub fn next(figures: &Figures, patience: Patience) -> Step {
    let Patience {
        limit,
        in_vain,
        most,
    } = patience;
    let forecast = figures.forecast();
    let fits = forecast <= limit;
    let short = forecast.saturating_sub(figures.fixed) <= SHORT;
    // What is left beyond what would be few enough is due to what is written from now on.
    if fits && (short || (figures.is_in_vain() && in_vain >= SETTLED)) {
        return Step::End {
            most: figures.fit(limit),
        };
    }
    if in_vain >= most {
        Step::GiveUp
    } else {
        Step::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn figures(left: u64, before: u64, fixed_ms: u64) -> Figures {
        Figures {
            left,
            before,
            rate: 1000.0 * MIB as f64,
            fixed: Duration::from_millis(fixed_ms),
        }
    }

    fn patience(limit_ms: u64, in_vain_ms: u64) -> Patience {
        Patience {
            limit: Duration::from_millis(limit_ms),
            in_vain: Duration::from_millis(in_vain_ms),
            most: Duration::from_millis(1000),
        }
    }

    #[test]
    fn it_ends_as_soon_as_little_is_left_and_never_beyond_the_limit() {
        let end = |most| Step::End { most };
        let cases = [
            // Little is left.
            (figures(MIB, 100 * MIB, 1), patience(100, 0), end(99 * MIB)),
            (figures(0, 100 * MIB, 1), patience(100, 0), end(99 * MIB)),
            // It would fit, and the next pass leaves less.
            (
                figures(50 * MIB, 100 * MIB, 1),
                patience(100, 0),
                Step::Pass,
            ),
            // It fits, and gets no better: for now, and for long enough to be sure.
            (
                figures(50 * MIB, 50 * MIB, 1),
                patience(100, 299),
                Step::Pass,
            ),
            (
                figures(50 * MIB, 50 * MIB, 1),
                patience(100, 300),
                end(99 * MIB),
            ),
            // It does not fit.
            (
                figures(200 * MIB, 200 * MIB, 1),
                patience(100, 900),
                Step::Pass,
            ),
            (
                figures(200 * MIB, 200 * MIB, 1),
                patience(100, 1000),
                Step::GiveUp,
            ),
            // Storage that takes longer to flush than may be waited.
            (figures(0, MIB, 200), patience(100, 0), Step::Pass),
            (figures(0, MIB, 200), patience(100, 2000), Step::GiveUp),
            // Even where hardly anything fits, some blocks do.
            (figures(0, MIB, 100), patience(100, 0), end(LITTLE)),
        ];
        for (figures, patience, step) in cases {
            assert_eq!(next(&figures, patience), step, "{figures:?} {patience:?}");
        }
    }

    #[test]
    fn a_rate_that_is_not_known_is_no_end() {
        let figures = Figures {
            rate: 0.0,
            ..figures(u64::MAX, 0, 0)
        };
        assert!(figures.forecast() >= Duration::from_secs(3600));
        assert_eq!(next(&figures, patience(100, 0)), Step::Pass);
    }
}
