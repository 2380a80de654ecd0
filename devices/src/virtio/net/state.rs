//! Saved state of the network device.

use serde::{Deserialize, Serialize};

use super::filter::FilterV1;

/// State of a virtio network device, version 1; frozen. Packets are never in flight when it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStateV1 {
    /// Address that the driver knows, or has set.
    pub mac: [u8; 6],
    /// Pairs of queues that the driver uses.
    pub pairs: u16,
    /// The driver was asked to announce itself and has not said that it did.
    pub announcing: bool,
    /// Offloads that the driver takes upon itself, as bits of `TUNSETOFFLOAD`.
    pub offloads: u32,
    /// Which packets the driver wants.
    pub filter: FilterV1,
}
