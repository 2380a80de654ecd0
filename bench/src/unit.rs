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
    /// One of which thousandths count.
    FineRatio,
}

impl Unit {
    /// A value with its unit.
    pub(super) fn show(self, value: f64) -> String {
        let signed = |show: fn(f64) -> String| match value < 0.0 {
            true => format!("-{}", show(-value)),
            false => show(value),
        };
        match self {
            Self::Milliseconds => signed(human_ms),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => signed(human_bytes),
            Self::Ratio => format!("{value:.2}"),
            Self::FineRatio => format!("{value:.4}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_less_is_shown_in_its_unit_too() {
        assert_eq!(Unit::Milliseconds.show(-20.0), "-20 ms");
        assert_eq!(Unit::Bytes.show(-1024.0), "-1.00 KiB");
        assert_eq!(Unit::Milliseconds.show(20.0), "20 ms");
    }
}
