//! The order of requests that overlap.

/// What a request does with its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Any number of these may go on at once.
    Reads,
    /// Nothing else goes on meanwhile.
    Changes,
}

/// The bytes that a request reads or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    from: u64,
    to: u64,
    how: Use,
}

impl Span {
    pub(crate) fn new(offset: u64, len: u64, how: Use) -> Self {
        Self {
            from: offset,
            to: offset.saturating_add(len),
            how,
        }
    }

    /// The same with more bytes around it, as (first byte, length).
    pub(crate) fn widened(&self, around: impl FnOnce(u64, u64) -> (u64, u64)) -> Self {
        let (from, len) = around(self.from, self.to - self.from);
        Self::new(from, len, self.how)
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.from.max(other.from) < self.to.min(other.to)
            && (self.how == Use::Changes || other.how == Use::Changes)
    }
}

/// A request's place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// Requests that have not ended, each of which waits for those before it that it conflicts with.
#[derive(Debug)]
pub(crate) struct Order {
    next: u64,
    unfinished: Vec<(Place, Span)>,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            next: 0,
            // More than are in flight, most of the time.
            unfinished: Vec::with_capacity(32),
        }
    }
}

impl Order {
    /// Gives a request its place behind all others.
    pub(crate) fn enter(&mut self, span: Span) -> Place {
        let place = Place(self.next);
        self.next += 1;
        self.unfinished.push((place, span));
        place
    }

    /// Whether nothing before it stands in the way of the request at `place`.
    pub(crate) fn is_due(&self, place: Place) -> bool {
        let Some((_, span)) = self.unfinished.iter().find(|(other, _)| *other == place) else {
            return true;
        };
        let mut before = self
            .unfinished
            .iter()
            .filter(|(other, _)| other.0 < place.0);
        !before.any(|(_, other)| other.conflicts(span))
    }

    /// The request has ended.
    pub(crate) fn leave(&mut self, place: Place) {
        if let Some(at) = self
            .unfinished
            .iter()
            .position(|(other, _)| *other == place)
        {
            self.unfinished.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_a_change_waits_for_what_came_before_it() {
        let mut order = Order::default();
        let read = order.enter(Span::new(0, 1024, Use::Reads));
        let beside = order.enter(Span::new(512, 512, Use::Reads));
        let write = order.enter(Span::new(1023, 2, Use::Changes));
        let behind = order.enter(Span::new(1024, 1, Use::Reads));
        let elsewhere = order.enter(Span::new(4096, 4096, Use::Changes));
        let due = |order: &Order| [read, beside, write, behind].map(|place| order.is_due(place));
        assert_eq!(due(&order), [true, true, false, false]);
        assert!(order.is_due(elsewhere));
        order.leave(read);
        assert_eq!(due(&order)[2..], [false, false]);
        order.leave(beside);
        assert_eq!(due(&order)[2..], [true, false]);
        order.leave(write);
        assert!(order.is_due(behind));
    }

    #[test]
    fn ranges_without_bytes_and_at_the_end_of_all_addresses_are_in_nobodys_way() {
        let mut order = Order::default();
        order.enter(Span::new(512, 0, Use::Changes));
        order.enter(Span::new(u64::MAX - 1, 512, Use::Changes));
        let around = order.enter(Span::new(0, 4096, Use::Changes));
        assert!(order.is_due(around));
    }
}
