//! What an interface is made as, and stays.

use super::backend::Offloads;
use super::mac::Mac;

/// What an interface is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Address that the guest sees first.
    pub mac: Mac,
    /// Pairs of queues, 1 to [`MAX_PAIRS`](super::MAX_PAIRS); as many as the backend has.
    pub pairs: u16,
    /// MTU that the guest is told, if any.
    pub mtu: Option<u16>,
    /// What is offered to the guest; the backend must be able to.
    pub offloads: Offloads,
}
