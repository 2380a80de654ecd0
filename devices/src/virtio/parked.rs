//! Requests that wait for something of the disk that has not come yet.

use std::collections::VecDeque;

/// Requests that are parked, by their heads, in the order in which they were.
///
/// Something comes at any time, also between a request's submission and its parking; so arrivals are
/// counted, and a request that was submitted before the newest is tried again.
#[derive(Debug, Default)]
pub(super) struct Parked {
    heads: VecDeque<u16>,
    /// How many of the first are to be tried again.
    due: usize,
    /// The count of arrivals after which all of them were tried.
    tried_at: u64,
}

impl Parked {
    /// These, all of which are to be tried.
    pub(super) fn of(heads: Vec<u16>) -> Self {
        Self {
            due: heads.len(),
            heads: heads.into(),
            tried_at: 0,
        }
    }

    /// Parks a request that was submitted after so many arrivals.
    pub(super) fn push(&mut self, head: u16, submitted_at: u64) {
        if self.heads.is_empty() || submitted_at < self.tried_at {
            self.tried_at = submitted_at;
        }
        self.heads.push_back(head);
    }

    /// Takes one that is to be tried again after so many arrivals.
    pub(super) fn next_due(&mut self, arrivals: u64) -> Option<u16> {
        if self.tried_at < arrivals {
            self.tried_at = arrivals;
            self.due = self.heads.len();
        }
        self.due = self.due.checked_sub(1)?;
        self.heads.pop_front()
    }

    /// All of them.
    pub(super) fn heads(&self) -> Vec<u16> {
        self.heads.iter().copied().collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.heads.clear();
        self.due = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_once_for_an_arrival_also_when_it_parks_again() {
        let mut parked = Parked::default();
        parked.push(7, 0);
        parked.push(8, 0);
        assert_eq!(parked.next_due(0), None);
        assert_eq!(parked.next_due(1), Some(7));
        parked.push(7, 1);
        assert_eq!(parked.next_due(1), Some(8));
        assert_eq!(parked.next_due(1), None);
        assert_eq!(parked.heads(), [7]);
        assert_eq!(parked.next_due(2), Some(7));
    }

    #[test]
    fn what_came_between_submission_and_parking_is_not_missed() {
        let mut parked = Parked::default();
        parked.push(7, 4);
        assert_eq!(parked.next_due(5), Some(7));
        parked.push(7, 5);
        assert_eq!(parked.next_due(5), None);
    }

    #[test]
    fn all_that_were_loaded_are_tried() {
        let mut parked = Parked::of(vec![1, 2]);
        assert_eq!(parked.next_due(0), Some(1));
        assert_eq!(parked.next_due(0), Some(2));
        assert_eq!(parked.next_due(0), None);
    }
}
