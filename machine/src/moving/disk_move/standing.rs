//! Which of the images of a move is the disk, as it is recorded.

use migration::journal::{Handover, Overlay, SourceRecord};

/// Which image is the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The one that it had before.
    Old,
    /// As before, and the move came to nothing.
    Kept,
    /// An overlay, for now.
    Overlay(Overlay),
    /// An overlay, in which it is to stay.
    Settled(Overlay),
    /// The one that it moved to.
    New,
}

impl Standing {
    /// Where the disk stays if the next step does not come about.
    pub(super) fn kept(self) -> Self {
        match self {
            Self::Old | Self::Kept => Self::Kept,
            Self::Overlay(_) | Self::Settled(_) | Self::New => self,
        }
    }

    /// The record that says so; `to` is where the disk is to go.
    pub(super) fn recorded(self, to: &str) -> SourceRecord {
        let (handover, overlay) = match self {
            Self::Old => (Handover::Begun, None),
            Self::Kept => (Handover::Kept, None),
            Self::Overlay(overlay) => (Handover::Begun, Some(overlay)),
            Self::Settled(overlay) => (Handover::Gone, Some(overlay)),
            Self::New => (Handover::Gone, None),
        };
        SourceRecord {
            handover,
            destination: to.to_owned(),
            host: None,
            overlay,
        }
    }
}
