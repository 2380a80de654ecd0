//! Units of figures, and how a value is shown in its own.

use control::units::{human_bytes, human_ms};
use serde::Serialize;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share of something else.
    Ratio,
}

impl Unit {
    /// A value with its unit.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => human_ms(value),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => human_bytes(value),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}
