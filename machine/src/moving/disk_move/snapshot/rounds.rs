//! When rounds of consolidation end, and when the guest is slowed: decided from what was measured, and nothing else.

use block::copy::{Figures, Patience, Step, next};

/// What is done after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// Stop requests and bring what is left, at most so many bytes.
    End {
        /// Bytes.
        most: u64,
    },
    /// Have the guest go on in the next overlay, and bring what is in this one.
    Next,
    /// As [`Round::Next`], with the guest's requests slowed to so many bytes a second.
    Slow {
        /// Bytes a second.
        to: u64,
    },
    /// It gets no smaller, however slow the guest is.
    GiveUp,
}

/// A guest is slowed to this part of what it was, or of what is brought together, at once.
const PART: u64 = 4;
/// It is not slowed to less: about what the slowest disks do.
const LEAST: u64 = 256 << 10;

/// What to do after a round that left `figures`; `slowed` is what the guest is slowed to already.
pub(super) fn next_round(figures: &Figures, patience: Patience, slowed: Option<u64>) -> Round {
    match next(figures, patience) {
        Step::End { most } => Round::End { most },
        Step::Pass => Round::Next,
        // What the end costs whatever the guest does is no less for a guest that is slowed.
        Step::GiveUp if figures.fixed > patience.limit => Round::GiveUp,
        Step::GiveUp => match slowed {
            Some(now) if now <= LEAST => Round::GiveUp,
            now => {
                let now = now.unwrap_or(figures.rate as u64);
                Round::Slow {
                    to: (now / PART).max(LEAST),
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rounds_go_on_until_the_rest_fits_and_a_guest_that_is_too_fast_is_slowed_before_it_is_given_up()
     {
        let figures = |left, before, fixed| Figures {
            left,
            before,
            rate: 64.0 * MIB as f64,
            fixed: Duration::from_millis(fixed),
        };
        let patience = |in_vain| Patience {
            limit: Duration::from_millis(100),
            in_vain: Duration::from_millis(in_vain),
            most: Duration::from_millis(1000),
        };
        let cases = [
            // It shrinks; it is small; it fits, and gets no smaller.
            (figures(50 * MIB, 1000 * MIB, 1), 0, None, Round::Next),
            (
                figures(0, 50 * MIB, 0),
                0,
                None,
                Round::End { most: 6_710_886 },
            ),
            (
                figures(5 * MIB, 5 * MIB, 0),
                400,
                None,
                Round::End { most: 6_710_886 },
            ),
            // It does not shrink: for a while; then the guest is slowed, and again, down to what is slow.
            (figures(50 * MIB, 50 * MIB, 1), 900, None, Round::Next),
            (
                figures(50 * MIB, 50 * MIB, 1),
                1000,
                None,
                Round::Slow { to: 16 * MIB },
            ),
            (
                figures(50 * MIB, 50 * MIB, 1),
                1000,
                Some(16 * MIB),
                Round::Slow { to: 4 * MIB },
            ),
            (
                figures(50 * MIB, 50 * MIB, 1),
                1000,
                Some(MIB / 2),
                Round::Slow { to: LEAST },
            ),
            (
                figures(50 * MIB, 50 * MIB, 1),
                1000,
                Some(LEAST),
                Round::GiveUp,
            ),
            // Storage that takes longer to flush than requests may wait: no guest is slowed in vain.
            (figures(0, MIB, 200), 1000, None, Round::GiveUp),
        ];
        for (figures, in_vain, slowed, round) in cases {
            let found = next_round(&figures, patience(in_vain), slowed);
            assert_eq!(found, round, "{figures:?} {in_vain} {slowed:?}");
        }
    }
}
