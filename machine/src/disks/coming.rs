//! What a guest's disk lacks that is served elsewhere: from when on that comes, how much is missing, and what becomes of it when
//! the guest moves on before all is here.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use block::on_demand::{OnDemand, Supply};
use control::instance::{MissingFromStatus, MissingStatus};
use migration::vm::Behind;

use crate::serving::chain::Chain;
use crate::serving::gate::Gate;

/// How long it may take until nothing is fetched any more, once nobody answers.
const END: Duration = Duration::from_secs(10);

/// Whether the guest is about to go on with its disk before that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// It is not: who serves the disk hears from here what is needed no more.
    Stays,
    /// It is, or has gone: they hear that from where it goes.
    Leaves,
}

/// What has the rest of a disk come, once it is told that the guest is here.
pub(crate) struct Coming {
    pub(super) layer: Weak<OnDemand>,
    pub(super) chain: Weak<Chain>,
    pub(super) gate: Arc<Gate>,
    /// Held by whoever acts on it.
    pub(super) guest: Arc<Mutex<Guest>>,
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

    fn set(&self, guest: Guest) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = guest;
    }

    /// The guest is about to go on: nobody is told from here that the disk is whole, until it [stays](Self::stay). What is missing
    /// is fetched on.
    pub(crate) fn leave(&self) {
        self.set(Guest::Leaves);
    }

    /// The guest stays.
    pub(crate) fn stay(&self) {
        self.set(Guest::Stays);
    }

    /// The guest has gone: nothing is fetched any more, and what has come is durable.
    pub(crate) fn end(&self) {
        self.leave();
        let (Some(layer), Some(chain)) = (self.layer.upgrade(), self.chain.upgrade()) else {
            return;
        };
        chain.stop();
        if !layer.end_fetching(END) {
            tracing::warn!("what was being fetched of a disk does not end");
        }
        if let Err(error) = layer.finish() {
            // It is fetched again, from where it came.
            tracing::warn!(%error, "what has come of a disk is not durable");
        }
    }

    /// Who has what is missing here, in the order in which they are to be asked.
    pub(crate) fn behind(&self) -> Vec<Behind> {
        let chain = self.chain.upgrade();
        chain.map(|chain| chain.needed()).unwrap_or_default()
    }

    /// What is missing, and from whom; `None` when nothing is, or the guest has ended.
    pub(crate) fn missing(&self) -> Option<MissingStatus> {
        let status = self.layer.upgrade()?.status();
        if status.missing_bytes == 0 {
            return None;
        }
        let from = self.chain.upgrade()?.missing();
        let why = match status.supply {
            Supply::Comes => None,
            Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => Some(why),
        };
        let addresses: Vec<_> = from.iter().map(|from| &*from.at).collect();
        Some(MissingStatus {
            bytes: status.missing_bytes,
            from: addresses.join(", "),
            sources: from
                .iter()
                .map(|from| MissingFromStatus {
                    from: from.at.clone(),
                    bytes: from.bytes,
                    why: from.lost.clone(),
                })
                .collect(),
            why,
        })
    }
}
