//! When the machine's state was saved at the source, by the clock of the destination.
//!
//! The destination says of each pass that it is placed, and the source says how long after it had heard
//! that it saved the state. So the state was saved no earlier than that long after the word was sent,
//! and no later than when the state was here: an interval as long as the way to the source and back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::control::Saved;

/// Passes whose moments are kept: the source means one of the last few.
const KEPT: usize = 8;

pub(super) struct Placings {
    placed: VecDeque<(u32, Instant)>,
    state_here: Option<Instant>,
}

impl Placings {
    pub fn new() -> Self {
        Self {
            placed: VecDeque::with_capacity(KEPT),
            state_here: None,
        }
    }

    /// The source is about to be told that `pass` is placed.
    pub fn push(&mut self, pass: u32, now: Instant) {
        if self.placed.len() == KEPT {
            self.placed.pop_front();
        }
        self.placed.push_back((pass, now));
    }

    pub fn state_is_here(&mut self) {
        self.state_here = Some(Instant::now());
    }

    /// Between which moments the state was saved; the first where it is known.
    pub fn saved_between(&self, saved: Option<Saved>) -> (Option<Instant>, Instant) {
        let latest = self.state_here.unwrap_or_else(Instant::now);
        let earliest = saved.and_then(|saved| {
            let (_, told) = self
                .placed
                .iter()
                .find(|(pass, _)| *pass == saved.after_pass)?;
            // A peer that says what cannot be does not get past the moment when its state was here.
            told.checked_add(Duration::from_micros(saved.after_us))
                .map(|moment| moment.min(latest))
        });
        (earliest, latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(after_pass: u32, after_us: u64) -> Option<Saved> {
        Some(Saved {
            after_pass,
            after_us,
        })
    }

    #[test]
    fn the_state_was_saved_after_the_word_was_sent_and_before_it_was_here() {
        let began = Instant::now();
        let mut placings = Placings::new();
        placings.push(1, began);
        placings.state_here = Some(began + Duration::from_millis(10));
        let latest = began + Duration::from_millis(10);
        let earliest = began + Duration::from_millis(7);
        assert_eq!(
            placings.saved_between(saved(1, 7000)),
            (Some(earliest), latest)
        );
        assert_eq!(placings.saved_between(None), (None, latest));
        assert_eq!(placings.saved_between(saved(2, 0)), (None, latest));
        for lie in [20_000, u64::MAX] {
            let (earliest, _) = placings.saved_between(saved(1, lie));
            assert!(earliest.is_none_or(|moment| moment == latest), "{lie}");
        }
    }

    #[test]
    fn few_passes_are_kept() {
        let now = Instant::now();
        let mut placings = Placings::new();
        for pass in 0..10_000 {
            placings.push(pass, now);
        }
        assert_eq!(placings.placed.len(), KEPT);
        assert!(placings.saved_between(saved(9_999, 0)).0.is_some());
        assert!(placings.saved_between(saved(9_000, 0)).0.is_none());
    }
}
