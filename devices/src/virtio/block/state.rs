//! Saved state of the disk.

use serde::{Deserialize, Serialize};

/// State of a virtio disk, version 1; frozen. Requests are never in flight when it is saved, so that it
/// only says which disk it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStateV1 {
    /// Size that the driver knows, in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Serial id that the driver knows.
    pub serial: String,
    /// Whether the driver knows it as read-only.
    pub read_only: bool,
}
