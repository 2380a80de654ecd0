//! What a contender is to the comparison.

use serde::Serialize;

/// What a contender is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MoverRole {
    /// This engine.
    Engine,
    /// This engine in another way, shown beside.
    FurtherEngine,
    /// This engine with a guest that has more disks than the one above.
    EngineWithMoreDisks,
    /// This engine with the same guest without its disks.
    EngineWithoutDisks,
    /// This engine with a guest that has little but its disks.
    EngineForBulk,
    /// Another VMM.
    Peer,
    /// The plain copy of the same images.
    PlainCopy,
}
