//! Saved state of the entropy source.

use serde::{Deserialize, Serialize};

/// State of the entropy source, version 1; frozen. It has none: no byte is ever given twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngStateV1 {}
