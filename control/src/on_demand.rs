//! A disk of which a part is served by another host: what its user may change of that while the guest runs.

use std::fmt;
use std::str::FromStr;

use migration::disk_modes::DiskPull;
use migration::source_loss::OnSourceLoss;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A change of how what is missing of a disk is had; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OnDemandChange {
    /// What requests for what is missing do while whoever serves it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_source_loss: Option<OnSourceLoss>,
    /// How what the guest does not ask for is had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<PullPriority>,
}

/// How what a guest does not ask for is had of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullPriority {
    /// Not at all.
    Off,
    /// Behind all that a guest waits for, and within the rate that its server keeps to.
    #[default]
    Background,
    /// As if the guest waited for it.
    High,
}

impl From<DiskPull> for PullPriority {
    fn from(pull: DiskPull) -> Self {
        match pull {
            DiskPull::Background => Self::Background,
            DiskPull::Off => Self::Off,
        }
    }
}

impl PullPriority {
    /// Whether it is the usual one.
    pub fn is_background(&self) -> bool {
        *self == Self::Background
    }
}

impl FromStr for PullPriority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "background" => Ok(Self::Background),
            "high" => Ok(Self::High),
            _ => Err(format!(
                "{text:?} is no priority of a pull: high, background and off are"
            )),
        }
    }
}

impl fmt::Display for PullPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Background => "background",
            Self::High => "high",
        })
    }
}
