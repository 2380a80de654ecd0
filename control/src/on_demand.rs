//! A disk of which a part is served by another host: what its user may change of that while the guest runs.

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
}
