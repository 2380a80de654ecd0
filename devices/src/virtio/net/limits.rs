//! What an interface and its packets have at most.

use super::backend::HEADER;

/// Most pairs of queues.
pub const MAX_PAIRS: u16 = 8;

/// Largest packet that is not cut into pieces, with its header (virtio 1.2, 5.1.6.3.1).
pub(super) const LARGEST: u64 = 65_550 + HEADER;
/// Ethernet header with a VLAN tag.
pub(super) const ETHERNET: u64 = 18;
/// MTU of an interface that does not tell.
pub(super) const DEFAULT_MTU: u16 = 1500;
