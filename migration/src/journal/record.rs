//! What both sides record: the destination its decision, the source how far it went.

use serde::{Deserialize, Serialize};

use crate::id::HostId;

/// What a destination decided about a migration; never changed once recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The guest belongs to this side.
    Commit,
    /// It never ran here and never will.
    GiveUp,
}

/// How far a source went with a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handover {
    /// Nothing is decided; the guest is here.
    Begun,
    /// The commit may have reached the destination.
    CommitSent,
    /// The destination has the guest.
    Gone,
    /// The guest is here.
    Kept,
}

/// What a source knows about a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// How far it went.
    pub handover: Handover,
    /// Where the destination listens, for a later resolve.
    pub destination: String,
    /// Who listens there, where that was told: nobody else knows whether the guest ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}
