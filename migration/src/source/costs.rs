//! What a switch-over costs beside the last pages, part by part, as far as it was measured.

use std::time::Duration;

use crate::vm::Rehearsal;

/// The parts, of a guest that runs now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Costs {
    /// Stopping the vCPUs and saving the state; loading it is taken to cost as much as saving it.
    pub machine: Rehearsal,
    /// What is flushed when the guest stands.
    pub flush: Duration,
    /// What the destination flushes then, of disks that travel.
    pub their_flush: Duration,
    /// Hashing all memory, where that was asked for, on the slower side.
    pub hashing: Duration,
    /// Both records of the decision.
    pub records: Duration,
    /// The last pages, the state and the commit each wait for an answer.
    pub answers: Duration,
}

impl Costs {
    fn parts(&self) -> [(&'static str, Duration); 6] {
        let Self {
            machine: Rehearsal { stop, save },
            flush,
            their_flush,
            hashing,
            records,
            answers,
        } = *self;
        [
            ("stopping it, saving and loading its state", stop + save * 2),
            ("flushing its disks", flush),
            ("flushing its disks at the destination", their_flush),
            ("hashing its memory", hashing),
            ("recording the decision on both hosts", records),
            ("answers of the destination", answers),
        ]
    }

    /// All of them.
    pub fn total(&self) -> Duration {
        self.parts().iter().map(|(_, cost)| *cost).sum()
    }

    /// The same, but for a flush that the next one may make shorter.
    pub fn without_flush(self) -> Self {
        Self {
            flush: Duration::ZERO,
            their_flush: Duration::ZERO,
            ..self
        }
    }

    /// The parts that matter, largest first.
    pub fn describe(&self) -> String {
        let mut parts = self.parts();
        parts.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        let least = self.total() / 20;
        let told = parts.iter().filter(|(_, cost)| *cost > least);
        let told: Vec<_> = told
            .map(|(what, cost)| format!("{what} {:.1} ms", cost.as_secs_f64() * 1e3))
            .collect();
        told.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_most_is_named_first_and_trifles_are_not() {
        let costs = Costs {
            machine: Rehearsal {
                stop: Duration::from_micros(100),
                save: Duration::from_micros(200),
            },
            flush: Duration::from_millis(40),
            their_flush: Duration::from_millis(60),
            hashing: Duration::from_millis(900),
            ..Costs::default()
        };
        assert_eq!(costs.total(), Duration::from_micros(1_000_500));
        assert_eq!(
            costs.without_flush().total(),
            Duration::from_micros(900_500)
        );
        assert_eq!(
            costs.describe(),
            "hashing its memory 900.0 ms, flushing its disks at the destination 60.0 ms"
        );
    }
}
