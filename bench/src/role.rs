//! What a contender is to the comparison: who is compared with whom goes by it.

use serde::Serialize;

/// What a contender is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This engine.
    Engine,
    /// This engine at a destination that had the memory ready before the time was taken.
    PreparedEngine,
    /// Another VMM.
    Peer,
    /// Another VMM that did part of its work before the time was taken.
    PreparedPeer,
    /// The plain copy into memory that is allocated as it is written.
    ColdLimit,
    /// The plain copy into memory that is there already.
    PopulatedLimit,
}
