//! What a guest's disk lacks that is served elsewhere: from when on that comes, and how much is missing.

use std::sync::{Arc, Weak};

use block::on_demand::{OnDemand, Supply};
use block::stack::Stack;
use control::instance::MissingStatus;

use crate::serving::gate::Gate;

/// What has the rest of a disk come, once it is told that the guest is here.
pub(crate) struct Coming {
    /// Where it is served.
    pub(super) at: String,
    pub(super) layer: Weak<OnDemand>,
    /// The disk below that, to which is written what comes with the guest.
    pub(super) bare: Stack,
    pub(super) gate: Arc<Gate>,
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

    /// What is missing, and from whom; `None` when nothing is, or the guest has ended.
    pub(crate) fn missing(&self) -> Option<MissingStatus> {
        let status = self.layer.upgrade()?.status();
        (status.missing_bytes > 0).then(|| MissingStatus {
            bytes: status.missing_bytes,
            from: self.at.clone(),
            why: match status.supply {
                Supply::Comes => None,
                Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => Some(why),
            },
        })
    }
}
