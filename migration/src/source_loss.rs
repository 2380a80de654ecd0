//! What becomes of a guest's requests for what its disk lacks while whoever serves that is lost.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Span;

/// How long they wait before they fail, unless somebody says otherwise.
pub const USUAL: Span = Span(Duration::from_secs(30));

/// What requests do that need what is served, while whoever serves it is lost.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSourceLoss {
    /// They wait until it is back.
    #[default]
    Pause,
    /// They wait for a while, and fail from then on until it is back.
    Error {
        /// How long it has to be lost.
        #[serde(rename = "after_ms")]
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        after: Span,
    },
}

impl OnSourceLoss {
    /// Whether it is the usual one.
    pub fn is_pause(&self) -> bool {
        *self == Self::Pause
    }
}

impl FromStr for OnSourceLoss {
    type Err = String;

    /// Reads `pause`, `error` or `error:TIME`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "pause" => Ok(Self::Pause),
            None if text == "error" => Ok(Self::Error { after: USUAL }),
            Some(("error", after)) => {
                let after = after.parse::<Span>().map_err(|e| e.to_string())?;
                Ok(Self::Error { after })
            }
            _ => Err(format!(
                "{text:?} is nothing that is done when the source of a disk is lost: pause, error and error:TIME are"
            )),
        }
    }
}

impl fmt::Display for OnSourceLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pause => f.write_str("pause"),
            Self::Error { after } => write!(f, "error:{after}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for text in ["pause", "error:0us", "error:200ms", "error:2m"] {
            let read: OnSourceLoss = text.parse().unwrap();
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<OnSourceLoss>(&json).unwrap(), read);
            assert_eq!(read.to_string().parse(), Ok(read));
        }
        let usual = "error".parse();
        assert_eq!(usual, Ok(OnSourceLoss::Error { after: USUAL }));
        for text in ["", "wait", "pause:2s", "error:", "error:5"] {
            text.parse::<OnSourceLoss>().unwrap_err();
        }
    }
}
