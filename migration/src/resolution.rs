//! The answer to the question whether a guest ran at its destination: recorded there, sent to whoever
//! asks, and acted on at the source.

use serde::{Deserialize, Serialize};

/// What became of the guest at a destination.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// The destination committed: the guest ran there and must not run at the source again.
    Ran,
    /// The destination never ran the guest and never will.
    NeverRan,
}
