//! Bodies of control frames, which travel as JSON.

use serde::{Deserialize, Serialize};

use crate::PAGE_SIZE;
use crate::error::Error;
use crate::id::HostId;
use crate::observation::Observation;
use crate::progress::Verify;
use crate::resolution::Resolution;
use crate::vm::{MachineDescription, RunState, TravellingDisk, VolumeOffer};

/// Most extents that are announced.
pub const MAX_EXTENTS: usize = 16 << 10;

/// Most warnings that are told with the commit.
pub const MAX_WARNINGS: usize = 16;

/// Destination to source: go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version that both sides will speak.
    pub version: u16,
    /// Secret of this migration, 16 bytes: data connections show it, the digest is keyed by it.
    pub token: [u8; 16],
    /// Who will answer whether the guest ran there; told from version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What both can do, of what the hello told ([`super::capabilities::Capabilities`]); told from version 4 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<u64>,
    /// What is placed already; told to a source that comes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<PlacedSoFar>,
}

/// What a destination has placed when a new link begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedSoFar {
    /// The last pass that all streams have placed, 0 for none.
    pub pass: u32,
    /// Of the pass after that, how many batches of each stream are placed; [`WHOLE_PASS`] of one that has ended it.
    pub frames: Vec<u32>,
}

/// A stream has placed all of its part of a pass.
pub const WHOLE_PASS: u32 = u32::MAX;

/// Whether the guest is to be moved, or only the question asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// Move it.
    Migrate,
    /// Only say whether it would work.
    Plan,
}

/// Source to destination: what is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiate {
    /// The machine.
    pub machine: MachineDescription,
    /// Whether it runs.
    pub run_state: RunState,
    /// Number of data connections.
    pub streams: u8,
    /// How memory is verified.
    pub verify: Verify,
    /// What for.
    pub intent: Intent,
    /// How its state can be written, for the destination to choose; told from version 4 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Disks that travel as blocks, or may, at most [`super::MAX_VOLUMES`]; told to who takes them
    /// ([`super::capabilities::Capabilities::VOLUMES`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeOffer>,
    /// For how long, in milliseconds, the source would try to come again if the link is lost while it copies; absent where
    /// it would not, and where the destination does not take it back
    /// ([`super::capabilities::Capabilities::NEW_LINK`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_ms: Option<u64>,
}

/// Destination to source: this host can build and run the machine. No body where nothing is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// How the state is to be written, where [`Negotiate`] left the choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Which of the disks of [`Negotiate::volumes`] travel; batches number them in this order, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<TravellingDisk>,
}

/// Destination to source: the machine is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// How long recording a decision takes there, in milliseconds.
    pub journal_ms: f64,
    /// Bytes that it hashes per second, where all memory is to be hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_bytes_per_s: Option<f64>,
    /// Disks of which it wants samples with the last pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// Numbers of the disks that travel, ascending, that hold what they held before; told to who looks for that
    /// ([`super::capabilities::Capabilities::BLOCK_DIGESTS`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_disks: Vec<u16>,
}

/// Source to destination: stretches of guest memory that hold data, as `(gpa, length)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Ascending, page-aligned, at most [`MAX_EXTENTS`].
    pub extents: Vec<(u64, u64)>,
}

impl Extents {
    /// Work is done for each: none may be named twice, and they may not be too many.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Protocol(what));
        if self.extents.len() > MAX_EXTENTS {
            return wrong(format!("it announces {} extents", self.extents.len()));
        }
        let mut end = 0;
        for &(gpa, len) in &self.extents {
            let aligned = gpa % PAGE_SIZE == 0 && len % PAGE_SIZE == 0;
            match gpa.checked_add(len) {
                Some(next) if aligned && gpa >= end => end = next,
                _ => {
                    return wrong(format!(
                        "it announces an extent of {len:#x} bytes at {gpa:#x}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Destination to source: all pages of a pass are in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassPlaced {
    /// The pass.
    pub pass: u32,
    /// How long it took, in microseconds, to make durable what had come of disks; absent where none travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_us: Option<u64>,
}

/// Source to destination: after this pass no page follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPass {
    /// The pass.
    pub pass: u32,
    /// When the state was saved; where absent, nothing is known of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    /// Whether the guest ran when it was stopped; where absent, as it was negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_state: Option<RunState>,
    /// Samples of what the disks hold that [`Prepared`] named; absent where it named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<String>,
}

/// When the source saved the state, told by what it had heard before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The last pass of which it had heard that it was placed.
    pub after_pass: u32,
    /// How long after it had heard so it began to save, in microseconds.
    pub after_us: u64,
}

/// Destination to source: everything is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Digest of the memory as asked for in [`Negotiate`], hexadecimal.
    pub digest: Option<String>,
    /// Digest of the disks that travelled, unless nothing is verified; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks_digest: Option<String>,
    /// Disks that travelled and that it holds whole, and has made durable; told to who looks for that
    /// ([`super::capabilities::Capabilities::DISK_TERMS`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole_disks: Vec<String>,
    /// How long loading the state took, in milliseconds.
    pub load_ms: f64,
}

/// Destination to source: the guest runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Recording the decision, in milliseconds.
    pub journal_ms: f64,
    /// Starting the guest, in milliseconds.
    pub start_ms: f64,
    /// What went wrong without keeping the guest from running, at most [`MAX_WARNINGS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Observation>,
}

/// Destination's answer to a resolve. In version 1 it was the bare [`Resolution`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "AnswerBody", into = "AnswerBody")]
pub struct Answer {
    /// What became of the guest.
    pub resolution: Resolution,
    /// Who says so; told from version 2 on.
    pub host: Option<HostId>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AnswerBody {
    Bare(Resolution),
    Signed {
        resolution: Resolution,
        host: HostId,
    },
}

impl From<AnswerBody> for Answer {
    fn from(body: AnswerBody) -> Self {
        match body {
            AnswerBody::Bare(resolution) => Self {
                resolution,
                host: None,
            },
            AnswerBody::Signed { resolution, host } => Self {
                resolution,
                host: Some(host),
            },
        }
    }
}

impl From<Answer> for AnswerBody {
    fn from(Answer { resolution, host }: Answer) -> Self {
        match host {
            None => Self::Bare(resolution),
            Some(host) => Self::Signed { resolution, host },
        }
    }
}
