//! Saved state of the serial port.

use serde::{Deserialize, Serialize};

/// State of a serial port, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialStateV1 {
    /// DLL.
    pub baud_divisor_low: u8,
    /// DLM.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Received bytes that the guest has not read, oldest first.
    pub fifo: Vec<u8>,
    /// Input that found no room in the FIFO yet, oldest first.
    pub backlog: Vec<u8>,
}
