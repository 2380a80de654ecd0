//! The fields of a line of the probe guest.

use std::collections::BTreeMap;

/// Why a line is not one of the probe guest's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeLineError {
    /// The line has no `PROBE` word.
    #[error("not a line of the probe guest")]
    NotProbe,
    /// The kind of line is not known to this version.
    #[error("unknown kind of probe line: {0}")]
    UnknownKind(String),
    /// A field is absent.
    #[error("probe line lacks {0}")]
    Missing(&'static str),
    /// A field does not hold a number.
    #[error("probe line has {key}={value}, which is no number")]
    Number {
        /// Name of the field.
        key: &'static str,
        /// What stands there.
        value: String,
    },
}

/// The fields of a line.
pub(super) struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    /// Reads `key=value` words; others are skipped.
    pub(super) fn of(words: impl Iterator<Item = &'a str>) -> Self {
        Self(words.filter_map(|word| word.split_once('=')).collect())
    }

    pub(super) fn text(&self, key: &'static str) -> Result<String, ProbeLineError> {
        self.0
            .get(key)
            .map(|&value| value.to_owned())
            .ok_or(ProbeLineError::Missing(key))
    }

    pub(super) fn number(&self, key: &'static str) -> Result<u64, ProbeLineError> {
        let value = self.text(key)?;
        let number = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => value.parse(),
        };
        number.map_err(|_| ProbeLineError::Number { key, value })
    }

    /// A number that older guests did not tell.
    pub(super) fn optional(&self, key: &'static str) -> Result<Option<u64>, ProbeLineError> {
        if self.0.contains_key(key) {
            self.number(key).map(Some)
        } else {
            Ok(None)
        }
    }

    pub(super) fn small(&self, key: &'static str) -> Result<u32, ProbeLineError> {
        u32::try_from(self.number(key)?).map_err(|_| ProbeLineError::Number {
            key,
            value: self.0[key].to_owned(),
        })
    }
}
