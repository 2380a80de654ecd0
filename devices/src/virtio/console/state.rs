//! Saved state of the console.

use serde::{Deserialize, Serialize};

/// State of a virtio console, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleStateV1 {
    /// Input that the guest has not taken, oldest first.
    pub input: Vec<u8>,
}
