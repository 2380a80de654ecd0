//! Which change, and which piece of the background copy, may begin.

use std::ops::Range;

use super::share::Share;

/// Where changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the disk and to the target.
    Both,
    /// To the disk alone, and they are marked as missed by the target.
    Here,
}

/// For what somebody waits who was not let in, and is to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Awaited {
    /// For a range that was in use.
    range: bool,
    /// For the background, or a flush of the target, to get on.
    share: bool,
}

/// A change that was let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    number: u64,
    pub(super) way: Way,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Admission {
    way: Way,
    next: u64,
    changes: Vec<(u64, Range<u64>)>,
    /// What is copied, or is about to be.
    piece: Option<Range<u64>>,
    /// Whether the background would go on, were it its turn.
    eager: bool,
    share: Share,
    /// Bytes that the target was given and has not made durable.
    given: u64,
    durable: u64,
    most_unflushed: Option<u64>,
    awaited: Awaited,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

impl Admission {
    pub(super) fn new() -> Self {
        Self {
            way: Way::Both,
            next: 0,
            changes: Vec::with_capacity(32),
            piece: None,
            eager: false,
            share: Share::default(),
            given: 0,
            durable: 0,
            most_unflushed: None,
            awaited: Awaited::default(),
        }
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }

    pub(super) fn set_way(&mut self, way: Way) {
        self.way = way;
    }

    /// Bytes that the target was given and has not made durable.
    pub(super) fn unflushed(&self) -> u64 {
        self.given - self.durable
    }

    /// Whether changes have to let the background or a flush get on first.
    fn holds_up(&self) -> bool {
        let behind = self.eager && self.share.holds_up();
        let most = self.most_unflushed;
        let much = most.is_some_and(|most| self.unflushed() > most);
        self.way == Way::Both && (behind || much)
    }

    /// Lets a change of `range` in, which moves so many bytes, unless it has to wait.
    pub(super) fn enter(&mut self, range: &Range<u64>, bytes: u64) -> Option<Place> {
        let used = self.changes.iter().map(|(_, change)| change);
        if used.chain(&self.piece).any(|used| overlap(used, range)) {
            self.awaited.range = true;
            return None;
        }
        if self.holds_up() {
            self.awaited.share = true;
            return None;
        }
        if self.way == Way::Both && self.eager {
            self.share.changed(bytes);
        }
        let number = self.next;
        self.next += 1;
        self.changes.push((number, range.clone()));
        Some(Place {
            number,
            way: self.way,
        })
    }

    /// A change has ended, which gave the target so many bytes.
    pub(super) fn leave(&mut self, place: &Place, given: u64) {
        self.changes.retain(|(number, _)| *number != place.number);
        self.given += given;
    }

    /// Whether it is the turn of the background.
    pub(super) fn is_its_turn(&mut self) -> bool {
        if !self.eager {
            self.share.forgive();
            self.eager = true;
        }
        self.changes.is_empty() || self.share.is_behind()
    }

    /// Keeps changes away from what is to be copied.
    pub(super) fn keep(&mut self, piece: Range<u64>) {
        self.piece = Some(piece);
    }

    /// Whether no change of the piece is under way.
    pub(super) fn is_kept_alone(&self) -> bool {
        let piece = self.piece.as_ref();
        let mut changes = self.changes.iter();
        !changes.any(|(_, change)| piece.is_some_and(|piece| overlap(piece, change)))
    }

    /// The piece may be changed again; for it the target was given so many bytes, which counts as `worth` of them.
    pub(super) fn let_go(&mut self, given: u64, worth: u64) {
        self.piece = None;
        self.share.copied(worth);
        self.given += given;
    }

    /// Whether no change is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.changes.is_empty()
    }

    /// The background waits for something else than its turn, or has ended: nobody waits for it.
    pub(super) fn rest(&mut self) {
        self.eager = false;
    }

    /// Bytes that the target was given until now.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// The target has made durable what it was given until then.
    pub(super) fn flushed(&mut self, given: u64) {
        self.durable = self.durable.max(given);
    }

    /// Has changes wait while the target has more than so much that is not durable.
    pub(super) fn bound_unflushed(&mut self, most: Option<u64>) {
        self.most_unflushed = most;
    }

    /// Whether somebody is to be told that it may come again.
    pub(super) fn take_awaited(&mut self) -> bool {
        let share = self.awaited.share && !self.holds_up();
        let told = self.awaited.range || share;
        self.awaited.range = false;
        self.awaited.share &= !share;
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn of_each_byte_there_is_one_change_or_one_copy_at_a_time() {
        let mut admission = Admission::new();
        let first = admission.enter(&(0..10), 10).unwrap();
        assert!(admission.enter(&(9..20), 11).is_none());
        assert!(admission.enter(&(10..20), 10).is_some());
        assert!(admission.take_awaited() && !admission.take_awaited());
        admission.keep(5..8);
        assert!(!admission.is_kept_alone());
        admission.leave(&first, 10);
        assert!(admission.is_kept_alone());
        assert!(admission.enter(&(0..6), 6).is_none());
        assert!(admission.enter(&(0..5), 5).is_some());
        admission.let_go(3, 3);
        assert!(admission.enter(&(5..8), 3).is_some());
    }

    #[test]
    fn the_guest_comes_first_until_the_background_is_behind_and_waits_only_while_that_would_go_on()
    {
        let mut admission = Admission::new();
        assert!(admission.is_its_turn());
        let mut places = Vec::new();
        let mut at = 0;
        while let Some(place) = admission.enter(&(at..at + MIB), MIB) {
            places.push(place);
            at += MIB;
        }
        // Behind, and changes wait.
        assert!(admission.is_its_turn() && !admission.take_awaited());
        let held = places.len();
        assert!((4..8).contains(&held), "{held}");
        // It waits for something else than its turn.
        admission.rest();
        assert!(admission.take_awaited());
        assert!(admission.enter(&(at..at + MIB), MIB).is_some());
        // It comes back, and nothing is owed to it.
        assert!(!admission.is_its_turn());
        for place in &places {
            admission.leave(place, MIB);
        }
    }

    #[test]
    fn changes_wait_for_a_flush_where_that_is_bounded_and_for_nothing_where_the_target_is_given_up()
    {
        let mut admission = Admission::new();
        let place = admission.enter(&(0..MIB), MIB).unwrap();
        admission.leave(&place, MIB);
        admission.bound_unflushed(Some(MIB / 2));
        assert!(admission.enter(&(0..512), 512).is_none());
        admission.flushed(admission.given());
        assert!(admission.take_awaited());
        let place = admission.enter(&(0..MIB), MIB).unwrap();
        admission.leave(&place, MIB);
        admission.set_way(Way::Here);
        let place = admission.enter(&(0..MIB), MIB).unwrap();
        assert_eq!(place.way, Way::Here);
    }
}
