//! What one turn of a contender gave, whichever it is.

use super::moved::Move;

/// What one copy took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Copied {
    /// From the first byte sent to the last placed.
    pub total_ms: f64,
    /// Largest gap of the guest that runs beside it: what the load alone does to a guest.
    pub guest_gap_ms: f64,
    /// CPU seconds of both sides.
    pub cpu_s: f64,
    /// Bytes copied.
    pub bytes: u64,
}

/// What one turn of a contender gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Turn {
    /// A guest was moved.
    Moved(Move),
    /// Bytes were copied.
    Copied(Copied),
}

impl Turn {
    /// The time that is compared.
    pub fn total_ms(&self) -> f64 {
        match self {
            Self::Moved(moved) => moved.total_ms,
            Self::Copied(copied) => copied.total_ms,
        }
    }

    /// The largest gap that the guest saw: the moved one, or the one beside the copy.
    pub fn guest_gap_ms(&self) -> f64 {
        match self {
            Self::Moved(moved) => moved.guest_gap_ms,
            Self::Copied(copied) => copied.guest_gap_ms,
        }
    }
}
