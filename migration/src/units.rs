//! Sizes, times and rates as users write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Why a text is not the quantity that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// A size does not parse.
    #[error("{text:?} is not a size: write bytes, or a number with KiB, MiB, GiB, TiB, KB, MB, GB")]
    Size {
        /// What was given.
        text: String,
    },
    /// A time does not parse.
    #[error("{text:?} is not a time: write a number with us, ms, s, m or h, as in 300ms")]
    Time {
        /// What was given.
        text: String,
    },
    /// A rate does not parse.
    #[error("{text:?} is not a rate: write a size per second, as in 500MiB/s")]
    Rate {
        /// What was given.
        text: String,
    },
    /// The quantity is not zero, but less than one of what is counted.
    #[error("{text:?} is less than one {unit}")]
    TooSmall {
        /// What was given.
        text: String,
        /// What is counted.
        unit: &'static str,
    },
    /// The quantity is larger than can be expressed.
    #[error("{text:?} is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

const SIZE_UNITS: [(&str, u64); 12] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

const TIME_UNITS: [(&str, u64); 5] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
];

enum Quantity {
    Value(u64),
    /// More than nothing, and less than one: rounded down it would mean something else.
    TooSmall,
    TooLarge,
    Unknown,
}

/// Reads `12`, `12unit` or `1.5unit` (at most nine decimals) by a table of units.
fn quantity(text: &str, units: &[(&str, u64)]) -> Quantity {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let Some(&(_, factor)) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit.trim_start()))
    else {
        return Quantity::Unknown;
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Quantity::Unknown;
    }
    let one = 10_u128.pow(fraction.len() as u32);
    // u64 * 10^9 * 2^40 exceeds 128 bits only for numbers that are too large anyway.
    let value = whole
        .parse::<u64>()
        .ok()
        .and_then(|w| u128::from(w).checked_mul(one))
        .and_then(|w| w.checked_add(fraction.parse().ok()?))
        .and_then(|mantissa| mantissa.checked_mul(u128::from(factor)))
        .and_then(|value| Some((u64::try_from(value / one).ok()?, value)));
    match value {
        Some((0, rest)) if rest > 0 => Quantity::TooSmall,
        Some((value, _)) => Quantity::Value(value),
        None => Quantity::TooLarge,
    }
}

fn too_small(text: &str, unit: &'static str) -> UnitError {
    let text = text.into();
    UnitError::TooSmall { text, unit }
}

/// A number of bytes: `256MiB`, `1.5GiB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match quantity(text, &SIZE_UNITS) {
            Quantity::Value(bytes) => Ok(Self(bytes)),
            Quantity::TooSmall => Err(too_small(text, "byte")),
            Quantity::TooLarge => Err(UnitError::TooLarge { text: text.into() }),
            Quantity::Unknown => Err(UnitError::Size { text: text.into() }),
        }
    }
}

/// Prints exactly, in the largest binary unit that divides the size: it parses back to itself.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ] {
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A span of time: `300ms`, `2s`, `1.5h`. A bare number is refused: its unit would be a guess. In JSON it is a number of
/// whole milliseconds, rounded up: a limit never becomes none by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = self.0.as_micros().div_ceil(1000);
        serializer.serialize_u64(u64::try_from(ms).unwrap_or(u64::MAX))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(|ms| Self(Duration::from_millis(ms)))
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match quantity(text, &TIME_UNITS) {
            Quantity::Value(us) => Ok(Self(Duration::from_micros(us))),
            Quantity::TooSmall => Err(too_small(text, "microsecond")),
            Quantity::TooLarge => Err(UnitError::TooLarge { text: text.into() }),
            Quantity::Unknown => Err(UnitError::Time { text: text.into() }),
        }
    }
}

/// Prints exactly, to the microsecond, in the largest unit that divides the time.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        if us == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in TIME_UNITS.iter().rev() {
            if us.is_multiple_of(u128::from(*unit)) {
                return write!(f, "{}{name}", us / u128::from(*unit));
            }
        }
        write!(f, "{us}us")
    }
}

/// Bytes per second: `500MiB/s`; `unlimited` and `0` are no limit. In JSON it is a number, of which 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

impl Rate {
    /// Whether there is no limit.
    pub fn is_unlimited(&self) -> bool {
        self.0.is_none()
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.unwrap_or(0))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Option::<u64>::deserialize(deserializer)?;
        Ok(Self(bytes.filter(|bytes| *bytes > 0)))
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "unlimited" || text == "0" {
            return Ok(Self(None));
        }
        let size = text
            .strip_suffix("/s")
            .ok_or_else(|| UnitError::Rate { text: text.into() })?;
        match quantity(size, &SIZE_UNITS) {
            Quantity::Value(0) => Ok(Self(None)),
            Quantity::Value(bytes) => Ok(Self(Some(bytes))),
            Quantity::TooSmall => Err(too_small(text, "byte per second")),
            Quantity::TooLarge => Err(UnitError::TooLarge { text: text.into() }),
            Quantity::Unknown => Err(UnitError::Rate { text: text.into() }),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{}/s", ByteSize(bytes)),
            None => f.write_str("unlimited"),
        }
    }
}

/// A size for people, rounded to three digits: `1.04 GiB`. Not meant to be parsed.
pub fn human_bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{value:.0} B"),
                _ if value < 10.0 => format!("{value:.2} {unit}"),
                _ if value < 100.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

/// A time in milliseconds for people: `812 us`, `3.42 ms`, `1.21 s`, `2 m 05 s`.
pub fn human_ms(ms: f64) -> String {
    match ms {
        _ if ms < 1.0 => format!("{:.0} us", ms * 1000.0),
        _ if ms < 10.0 => format!("{ms:.2} ms"),
        _ if ms < 1000.0 => format!("{ms:.0} ms"),
        _ if ms < 60_000.0 => format!("{:.2} s", ms / 1000.0),
        _ => format!(
            "{:.0} m {:02.0} s",
            (ms / 60_000.0).floor(),
            (ms % 60_000.0) / 1000.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1KiB", 1024),
            ("256MiB", 256 << 20),
            ("256m", 256 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("1KB", 1000),
            ("500MB", 500_000_000),
            ("3 GB", 3_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        for text in [
            "", "MiB", "1QiB", "-1", "1.", ".5GiB", "1.2.3MiB", "0x10", "1e9", "1MiB/s",
        ] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(UnitError::Size { .. })),
                "{text}"
            );
        }
        for text in [
            "18446744073709551616",
            "16777216TiB",
            "99999999999999999999999MiB",
        ] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(UnitError::TooLarge { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn times_need_a_unit() {
        for (text, ms) in [
            ("300ms", 300),
            ("2s", 2000),
            ("1.5s", 1500),
            ("5m", 300_000),
            ("0s", 0),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        assert_eq!("1h".parse(), Ok(Span(Duration::from_secs(3600))));
        for text in ["300", "ms", "1d", "1 day", "-1s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_sizes_per_second() {
        assert_eq!("500MiB/s".parse(), Ok(Rate(Some(500 << 20))));
        assert_eq!("unlimited".parse(), Ok(Rate(None)));
        assert_eq!("0".parse(), Ok(Rate(None)));
        for text in ["500MiB", "500/h", "/s", "fast"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_has_milliseconds_and_bytes_per_second() {
        for (us, ms) in [
            (0, "0"),
            (1, "1"),
            (1000, "1"),
            (1001, "2"),
            (300_000, "300"),
        ] {
            let span = Span(Duration::from_micros(us));
            assert_eq!(serde_json::to_string(&span).unwrap(), ms, "{us}");
        }
        let ms: Span = serde_json::from_str("18446744073709551615").unwrap();
        assert_eq!(serde_json::to_string(&ms).unwrap(), "18446744073709551615");
        for (rate, text) in [(Rate(None), "0"), (Rate(Some(5)), "5")] {
            assert_eq!(serde_json::to_string(&rate).unwrap(), text);
            assert_eq!(serde_json::from_str::<Rate>(text).unwrap(), rate);
        }
        assert_eq!(serde_json::from_str::<Rate>("null").unwrap(), Rate(None));
        for text in ["-1", "1.5", "\"1s\"", "null"] {
            assert!(serde_json::from_str::<Span>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn more_than_nothing_is_never_rounded_to_nothing() {
        let refused = |error: Option<UnitError>, text: &str| {
            assert!(matches!(error, Some(UnitError::TooSmall { .. })), "{text}");
        };
        for text in ["0.9B/s", "0.000000001KiB/s"] {
            refused(text.parse::<Rate>().err(), text);
        }
        for text in ["0.9", "0.0001KiB"] {
            refused(text.parse::<ByteSize>().err(), text);
        }
        for text in ["0.5us", "0.000000001ms"] {
            refused(text.parse::<Span>().err(), text);
        }
        for text in ["0.0B/s", "0B/s"] {
            assert_eq!(text.parse(), Ok(Rate(None)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printed_sizes_parse_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn printed_times_parse_back(us in 0..u64::MAX / 2) {
            let span = Span(Duration::from_micros(us));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn printed_rates_parse_back(bytes in 1..u64::MAX) {
            prop_assert_eq!(Rate(Some(bytes)).to_string().parse(), Ok(Rate(Some(bytes))));
        }

        #[test]
        fn any_text_gives_an_answer(text in "\\PC{0,24}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Span>();
            let _ = text.parse::<Rate>();
        }
    }
}
