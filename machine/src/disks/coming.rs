//! What a guest's disk lacks that is served elsewhere: from when on that comes, and how much is missing.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use block::on_demand::{OnDemand, Supply};
use control::instance::MissingStatus;
use control::on_demand::OnDemandChange;

use crate::disks::changes::{Changes, NotChanged};
use crate::disks::in_part::Terms;
use crate::serving::gate::Gate;

/// What has the rest of a disk come, once it is told that the guest is here.
pub(crate) struct Coming {
    /// Where it is served.
    pub(super) at: String,
    pub(super) layer: Weak<OnDemand>,
    pub(super) gate: Arc<Gate>,
    pub(super) changes: Changes,
    pub(super) terms: Arc<Mutex<Terms>>,
}

impl Coming {
    /// The guest is here: what it needs is asked for from here on, and what it does not need if that was said, at most so many
    /// bytes a second.
    pub(crate) fn begin(&self, rate: Option<u64>) {
        if let Some(layer) = self.layer.upgrade() {
            layer.steering().set_bandwidth(rate);
        }
        self.gate.open();
    }

    /// Changes how it is had; durable and in force when this returns.
    ///
    /// # Errors
    /// [`NotChanged`].
    pub(crate) fn change(&self, change: OnDemandChange) -> Result<(), NotChanged> {
        self.changes.ask(change)
    }

    fn terms(&self) -> Terms {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is missing, and from whom; `None` when nothing is, or the guest has ended.
    pub(crate) fn missing(&self) -> Option<MissingStatus> {
        let status = self.layer.upgrade()?.status();
        (status.missing_bytes > 0).then(|| MissingStatus {
            bytes: status.missing_bytes,
            from: self.at.clone(),
            on_source_loss: self.terms().on_source_loss,
            why: match status.supply {
                Supply::Comes => None,
                Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => Some(why),
            },
        })
    }
}
