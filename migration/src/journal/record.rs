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
    /// The overlay in which a disk goes on while it moves to another image on its host; neither the old image nor the new
    /// one is the disk then. Only beside [`Handover::Begun`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
}

/// An overlay that is a disk for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Overlay {
    /// Which of the overlays of the move.
    pub number: u8,
    /// What lies below it, perhaps with another overlay in between.
    pub base: OverlayBase,
}

/// The image to which what is in overlays comes in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverlayBase {
    /// The one that the disk had before.
    Old,
    /// The one that it moves to.
    New,
}
