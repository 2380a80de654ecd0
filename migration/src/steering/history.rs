//! Events that are kept: all that can come a few times only, and of the others the first and the newest.

use std::collections::VecDeque;

use crate::progress::{Event, FIRST_ITERATIONS, NEWEST_ITERATIONS};

/// Warnings that are kept, the first ones.
const FIRST_WARNINGS: usize = 32;
/// Warnings that are kept, the newest ones.
const NEWEST_WARNINGS: usize = 32;

/// Of links that were lost and made anew, as many as are kept of the first and of the newest.
const FIRST_LINKS: usize = 8;
const NEWEST_LINKS: usize = 56;

/// Kinds of events of which a migration may tell any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Iteration,
    Progress,
    Warning,
    /// The link was lost, or made anew.
    Link,
}

impl Kind {
    fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Iteration(_) => Some(Self::Iteration),
            Event::Progress { .. } => Some(Self::Progress),
            Event::Warning { .. } => Some(Self::Warning),
            Event::LinkLost { .. } | Event::Reconnected { .. } => Some(Self::Link),
            Event::Phase { .. } | Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_) => {
                None
            }
        }
    }

    /// How many of the first, and of the newest, are kept.
    fn kept(self) -> (usize, usize) {
        match self {
            Self::Iteration => (FIRST_ITERATIONS, NEWEST_ITERATIONS),
            Self::Progress => (0, 1),
            Self::Warning => (FIRST_WARNINGS, NEWEST_WARNINGS),
            Self::Link => (FIRST_LINKS, NEWEST_LINKS),
        }
    }
}

/// Events in their order, never more than some hundred.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    events: VecDeque<Event>,
}

impl History {
    pub fn push(&mut self, event: Event) {
        if let Some(kind) = Kind::of(&event) {
            self.make_room(kind);
        }
        self.events.push_back(event);
    }

    /// Leaves one of `kind` out if there are as many as are kept: the oldest that is not of the first.
    fn make_room(&mut self, kind: Kind) {
        let (first, newest) = kind.kept();
        let mut of_kind = (0..self.events.len())
            .filter(|&at| Kind::of(&self.events[at]) == Some(kind))
            .skip(first);
        if let Some(oldest) = of_kind.next()
            && of_kind.count() + 1 >= newest
        {
            self.events.remove(oldest);
        }
    }

    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    pub fn last(&self) -> Option<&Event> {
        self.events.back()
    }

    /// Takes away the last one, which is not to be told yet.
    pub fn hold_last_back(&mut self) {
        self.events.pop_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Iteration, Phase, Report};

    fn iteration(n: u32) -> Event {
        Event::Iteration(Iteration {
            n,
            ..Iteration::default()
        })
    }

    fn progress(iteration: u32) -> Event {
        Event::Progress {
            phase: Phase::Precopy,
            iteration,
            sent_bytes: 0,
            remaining_bytes: 0,
            mib_per_s: 0.0,
            dirty_pages_per_s: 0.0,
            eta_ms: None,
            forecast_downtime_ms: 0.0,
        }
    }

    #[test]
    fn any_number_of_passes_keeps_the_first_the_newest_and_all_phases() {
        let mut history = History::default();
        for phase in [Phase::Negotiate, Phase::Prepare, Phase::Precopy] {
            history.push(Event::Phase { phase });
        }
        for n in 1..=10_000 {
            history.push(iteration(n));
            history.push(progress(n));
        }
        history.push(Event::Phase {
            phase: Phase::StopAndCopy,
        });
        history.push(Event::Completed(Report::default()));
        let mut passes = Vec::new();
        let (mut phases, mut progresses) = (0, Vec::new());
        while let Some(event) = history.pop() {
            match event {
                Event::Iteration(iteration) => passes.push(iteration.n),
                Event::Phase { .. } => phases += 1,
                Event::Progress { iteration, .. } => progresses.push(iteration),
                _ => {}
            }
        }
        assert_eq!(phases, 4);
        assert_eq!(progresses, [10_000]);
        let mut expected: Vec<u32> = (1..=FIRST_ITERATIONS as u32).collect();
        expected.extend(10_001 - NEWEST_ITERATIONS as u32..=10_000);
        assert_eq!(passes, expected);
    }
}
