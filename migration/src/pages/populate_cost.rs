//! Which way of making memory present costs less on this host, at this moment.
//!
//! A huge page is several times cheaper than as many small ones, unless the host is itself a guest
//! that gave its large free blocks back to its own host and has only small ones at hand. That is not to be
//! asked for, and changes within a migration: so it is measured while the work is done.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The first huge pages may be dear by chance, as when the kernel has to put one together: this many are
/// tried before small ones are preferred.
const HUGE_TRIES: u32 = 2;
/// Failures in a row after which no further huge page is asked for: each may cost the kernel a
/// search for memory that it does not have.
const HUGE_FAILURES: u32 = 16;
/// The dearer way is tried again when the cheaper one took this many times what a trial costs.
const TRIAL_SHARE: u32 = 16;

/// A way of making memory present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By huge pages.
    Huge,
    /// By small pages, all at once.
    Small,
}

/// What each way costs, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct PopulateCost {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// CPU time for a stripe, of late.
    huge: Option<Duration>,
    small: Option<Duration>,
    huge_tries: u32,
    huge_failures: u32,
    /// CPU time since the last trial.
    since_trial: Duration,
}

impl PopulateCost {
    /// The way to go now, and for at most how many stripes of the `stripes` wanted.
    pub fn next(&self, stripes: u64) -> (Way, u64) {
        let known = self.known();
        if known.huge_failures >= HUGE_FAILURES {
            return (Way::Small, stripes);
        }
        let (Some(huge), Some(small)) = (known.huge, known.small) else {
            let untried = if known.huge.is_none() {
                Way::Huge
            } else {
                Way::Small
            };
            return (untried, stripes.min(1));
        };
        if huge > small && known.huge_tries < HUGE_TRIES {
            return (Way::Huge, stripes.min(1));
        }
        let (cheap, dear, trial) = if huge <= small {
            (Way::Huge, Way::Small, small)
        } else {
            (Way::Small, Way::Huge, huge)
        };
        if known.since_trial >= trial * TRIAL_SHARE {
            (dear, stripes.min(1))
        } else {
            (cheap, stripes)
        }
    }

    /// Learns that `stripes` went this way in `took` of CPU time.
    pub fn learn(&self, way: Way, stripes: u64, took: Duration) {
        let mut known = self.known();
        let each = took / u32::try_from(stripes).unwrap_or(u32::MAX).max(1);
        let was_cheaper = match way {
            Way::Huge => known
                .small
                .is_none_or(|small| known.huge.is_some_and(|huge| huge <= small)),
            Way::Small => known
                .huge
                .is_none_or(|huge| known.small.is_some_and(|small| small < huge)),
        };
        if was_cheaper {
            known.since_trial += took;
        } else {
            known.since_trial = Duration::ZERO;
        }
        let figure = match way {
            Way::Huge => {
                known.huge_failures = 0;
                known.huge_tries = known.huge_tries.saturating_add(1);
                &mut known.huge
            }
            Way::Small => &mut known.small,
        };
        // What the dearer way cost some time ago says little about now.
        *figure = match *figure {
            Some(before) if was_cheaper => Some((before + each) / 2),
            _ => Some(each),
        };
    }

    /// Learns that there was no huge page to be had.
    pub fn huge_failed(&self) {
        let mut known = self.known();
        known.huge_failures = known.huge_failures.saturating_add(1);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CPU time of the calling thread: what others do on a busy host says nothing about memory.
pub(super) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Goes `rounds` of 8 stripes where a stripe costs this much; stripes that went each way.
    fn go(cost: &PopulateCost, huge: Duration, small: Duration, rounds: u32) -> (u64, u64) {
        let (mut by_huge, mut by_small) = (0, 0);
        for _ in 0..rounds {
            let (way, stripes) = cost.next(8);
            let (each, count) = match way {
                Way::Huge => (huge, &mut by_huge),
                Way::Small => (small, &mut by_small),
            };
            *count += stripes;
            cost.learn(way, stripes, each * u32::try_from(stripes).unwrap());
        }
        (by_huge, by_small)
    }

    #[test]
    fn the_cheaper_way_is_found_and_the_other_one_costs_little() {
        let (huge, small) = go(&PopulateCost::default(), MS / 5, MS, 100);
        assert!(huge > 700 && (1..=15).contains(&small), "{huge}, {small}");
        let (huge, small) = go(&PopulateCost::default(), 4 * MS, MS, 100);
        assert!(small > 600 && (1..=15).contains(&huge), "{huge}, {small}");
    }

    #[test]
    fn a_first_huge_page_that_is_dear_by_chance_does_not_decide() {
        let cost = PopulateCost::default();
        go(&cost, 4 * MS, MS, 1);
        let (huge, small) = go(&cost, MS / 5, MS, 20);
        assert!(huge > 120 && small <= 3, "{huge}, {small}");
    }

    #[test]
    fn a_dearer_way_that_has_become_cheaper_is_taken_at_its_first_trial() {
        let cost = PopulateCost::default();
        go(&cost, 40 * MS, MS, 3);
        let (huge, small) = go(&cost, MS / 5, MS, 200);
        // 16 trials' worth of small pages, then huge ones.
        assert!(small <= 700 && huge > 5 * small / 4, "{huge}, {small}");
    }

    #[test]
    fn a_change_of_the_host_is_noticed() {
        let cost = PopulateCost::default();
        go(&cost, MS / 5, MS, 50);
        let (huge, small) = go(&cost, 4 * MS, MS, 50);
        assert!(small > 8 * huge, "{huge}, {small}");
        let (huge, small) = go(&cost, MS / 5, MS, 200);
        assert!(huge > 8 * small, "{huge}, {small}");
    }

    #[test]
    fn huge_pages_that_cannot_be_had_are_given_up() {
        let cost = PopulateCost::default();
        for _ in 0..HUGE_FAILURES {
            assert_eq!(cost.next(8).0, Way::Huge);
            cost.huge_failed();
        }
        assert_eq!(cost.next(8), (Way::Small, 8));
    }
}
