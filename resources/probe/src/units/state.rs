//! What a unit must hold by what was done to it, and the verdict on what it does hold.

use super::content::{Content, Identity};
use super::script::Kind;

/// What a unit may hold; the numbers are those of the newest change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known of it.
    Unknown,
    /// This version.
    Data(u64),
    /// Zeroes.
    Zero(u64),
    /// Zeroes or any version before: whichever is read first is what it holds from then on.
    Discarded(u64),
}

/// What is wrong with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// As docs/probe.md lists them.
    pub kind: &'static str,
    /// What should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl State {
    /// The state as one word.
    pub fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Data(sequence) => sequence << 2 | 1,
            Self::Zero(sequence) => sequence << 2 | 2,
            Self::Discarded(sequence) => sequence << 2 | 3,
        }
    }

    /// The state of a word that [`Self::pack`] made.
    pub fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Unknown,
            1 => Self::Data(word >> 2),
            2 => Self::Zero(word >> 2),
            _ => Self::Discarded(word >> 2),
        }
    }

    /// The newest change; 0 when none is known.
    pub fn sequence(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Data(sequence) | Self::Zero(sequence) | Self::Discarded(sequence) => sequence,
        }
    }

    /// The state after a change.
    pub fn after(self, kind: Kind, sequence: u64) -> Self {
        match (kind, self) {
            (Kind::Write, _) => Self::Data(sequence),
            // What was zero still is after a discard; of what is unknown nothing is known then.
            (Kind::Zeroes, _) | (Kind::Discard, Self::Zero(_)) => Self::Zero(sequence),
            (Kind::Discard, Self::Unknown) => Self::Unknown,
            (Kind::Discard, _) => Self::Discarded(sequence),
        }
    }

    /// The verdict on `found` at `sector`: the state from here on.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(self, found: &Content, identity: &Identity, sector: u64) -> Result<Self, Finding> {
        let wrong = |kind, expected, found| {
            Err(Finding {
                kind,
                expected,
                found,
            })
        };
        if self == Self::Unknown {
            return Ok(self);
        }
        let newest = self.sequence();
        let head = match *found {
            Content::Blank => {
                return match self {
                    Self::Data(_) => wrong("disk-lost", newest, 0),
                    _ => Ok(Self::Zero(newest)),
                };
            }
            Content::Torn { head, other } => return wrong("disk-torn", head, other),
            Content::Damaged { stored, actual } => return wrong("disk-damaged", stored, actual),
            Content::Whole(head) => head,
        };
        if head.sector != sector || head.identity.disk != identity.disk {
            return wrong("disk-misplaced", sector, head.sector);
        }
        if head.identity != *identity {
            return wrong("disk-foreign", identity.run, head.identity.run);
        }
        match self {
            Self::Data(_) if head.sequence == newest => Ok(self),
            Self::Discarded(_) if head.sequence < newest => Ok(Self::Data(head.sequence)),
            _ if head.sequence < newest => wrong("disk-stale", newest, head.sequence),
            _ => wrong("disk-future", newest, head.sequence),
        }
    }
}
