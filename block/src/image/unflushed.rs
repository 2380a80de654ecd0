//! Whether an image has changes that no flush has made durable.

use std::sync::atomic::{AtomicU64, Ordering};

/// Beginnings and ends of changes, and how many of these there were when the last flush began that was confirmed.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    changes: AtomicU64,
    flushed: AtomicU64,
}

/// What a flush covers, if it is confirmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Covered(u64);

impl Unflushed {
    /// A change is about to be made.
    pub(crate) fn begin_change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// A change has been made, or has failed.
    pub(crate) fn end_change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// A flush is about to be made.
    pub(crate) fn begin_flush(&self) -> Covered {
        Covered(self.changes.load(Ordering::SeqCst))
    }

    /// The storage has confirmed it.
    pub(crate) fn confirm(&self, covered: Covered) {
        // Of two flushes the one that began later may end first.
        self.flushed.fetch_max(covered.0, Ordering::SeqCst);
    }

    /// Whether there may be changes that no flush has covered which began after them.
    pub(crate) fn any(&self) -> bool {
        self.changes.load(Ordering::SeqCst) != self.flushed.load(Ordering::SeqCst)
    }
}
