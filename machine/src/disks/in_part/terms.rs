//! How what is missing of a disk is had, as its user wants it: as the map says, and as it was changed since.
//!
//! A map says it once, when it is made. What is changed later is a mark of the image, which the file system replaces as a whole,
//! and which goes when the disk is whole.

use block::RawImage;
use block::on_demand::OnLoss;
use control::on_demand::{OnDemandChange, PullPriority};
use migration::source_loss::OnSourceLoss;
use serde::{Deserialize, Serialize};

use super::map_file::ServedBy;
use crate::disks::marks;

/// How what is missing is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// What requests do while whoever serves it is lost.
    pub(crate) on_source_loss: OnSourceLoss,
    /// How what nobody asks for is had.
    pub(crate) priority: PullPriority,
}

impl Terms {
    /// Those of the disk whose `image` this is, and whose map says `by`.
    pub(crate) fn of(image: &RawImage, by: &ServedBy) -> Self {
        let changed = marks::terms(image).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was changed of a disk on demand is not known any more");
            None
        });
        let changed = changed.and_then(|text| serde_json::from_slice(&text).ok());
        changed.unwrap_or(Self {
            on_source_loss: by.on_source_loss,
            priority: by.pull.into(),
        })
    }

    /// The same, changed.
    pub(crate) fn changed(self, change: OnDemandChange) -> Self {
        let OnDemandChange {
            on_source_loss,
            priority,
        } = change;
        Self {
            on_source_loss: on_source_loss.unwrap_or(self.on_source_loss),
            priority: priority.unwrap_or(self.priority),
        }
    }

    /// Makes them those of the disk, durably.
    ///
    /// # Errors
    /// When they cannot be written: those from before stand.
    pub(crate) fn keep(&self, image: &RawImage) -> block::Result<()> {
        // Of plain values: that cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        marks::set_terms(image, &text)
    }

    /// What requests do, as the layer calls it.
    pub(crate) fn on_loss(&self) -> OnLoss {
        match self.on_source_loss {
            OnSourceLoss::Pause => OnLoss::Wait,
            OnSourceLoss::Error { after } => OnLoss::Fail { after: after.0 },
        }
    }
}
