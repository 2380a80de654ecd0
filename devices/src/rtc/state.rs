//! Saved state of the real-time clock.

use serde::{Deserialize, Serialize};

/// State of the CMOS real-time clock, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcStateV1 {
    /// Register that the next access to the data port means.
    pub index: u8,
    /// All 128 registers; those of the time count only while bit 7 of register B stops the clock.
    pub registers: Vec<u8>,
    /// What the guest's clock is ahead of the host's, in seconds.
    pub offset_seconds: i64,
    /// Second, of the guest's clock, for which the flags of register C were last brought up to date.
    pub seen_second: i64,
}
