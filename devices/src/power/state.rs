//! Saved state of the power devices.

use serde::{Deserialize, Serialize};

/// State of the ACPI power registers, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPowerStateV1 {
    /// Events that the guest has not read: bit 0 is the power button.
    pub pending_events: u8,
}

/// State of the keyboard controller, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042StateV1 {
    /// Controller configuration byte.
    pub configuration: u8,
    /// Command whose parameter is awaited; 0 is none.
    pub awaiting: u8,
    /// Byte in the output buffer, when there is one.
    pub output: Option<u8>,
}
