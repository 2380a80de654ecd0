//! The changes that a driver asked for and that wait until no request is in flight.

use super::awaited::Awaited;

/// What the driver asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The device begins anew.
    Reset,
    /// The queue of this index is not used any more.
    StopQueue(usize),
}

/// Changes that wait for requests to end; the gate is held for them.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Vec<Change>);

impl Unfinished {
    /// Whether this one waits.
    pub(super) fn holds(&self, change: Change) -> bool {
        self.0.contains(&change)
    }

    /// Lets a change wait.
    pub(super) fn push(&mut self, change: Change) {
        self.0.push(change);
    }

    /// All that waited, in the order in which they were asked for; nothing waits any more.
    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.0)
    }

    /// Whether anything waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the device is being reset.
    pub(super) fn is_reset(&self) -> bool {
        self.holds(Change::Reset)
    }

    /// What a request that does not end is waited for.
    pub(super) fn awaited(&self) -> Awaited {
        if self.is_reset() {
            Awaited::Reset
        } else {
            Awaited::Requests
        }
    }
}
