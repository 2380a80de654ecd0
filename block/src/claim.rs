//! The claim on an image, which changes hands without a gap.
//!
//! A claim is two byte-range locks on the image itself, far behind its data: byte *A* is the owner's,
//! byte *B* the successor's. Whoever wants the image for itself needs both; so whoever holds one keeps
//! everybody else out. See `docs/adr/0002-disk-claim-two-bytes.md`.
//!
//! | step | source holds | destination holds |
//! |---|---|---|
//! | running | A B | |
//! | [`Claim::offer_successor`] | A | |
//! | [`Claim::succeed`], before commit | A | B |
//! | commit: nothing to do | A | B |
//! | the source's process lets go | | B |
//! | [`Claim::complete`] | | A B |
//! | or, after a failure: destination gone, [`Claim::reclaim`] | A B | |

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::ofd::{self, Kind};
use crate::{Error, Result};

/// Place of the owner's byte: behind any image, and within what every file system can lock.
const OWNER: i64 = 0x3fff_ffff_766d_6d00;
/// Place of the successor's byte.
const SUCCESSOR: i64 = OWNER + 1;

/// What a claim holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Both bytes: the image is ours alone.
    Both,
    /// The owner's byte: a successor may, or does, hold the other.
    Owner,
    /// The successor's byte: the former owner has not let go yet.
    Successor,
    /// Both bytes, shared with other readers.
    Shared,
    /// Nothing.
    Nothing,
}

impl Held {
    const fn describe(self) -> &'static str {
        match self {
            Self::Both => "this process is its only owner",
            Self::Owner => "it is offered to a successor",
            Self::Successor => "its former owner has not let go yet",
            Self::Shared => "it is shared with other readers",
            Self::Nothing => "it was released",
        }
    }
}

/// The right to use an image, held by locks that end with the process.
///
/// The locks belong to the open file description; they are let go when the claim is released or
/// dropped.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
    held: Mutex<Held>,
}

impl Claim {
    /// Claims an image for this process alone. `file` must be open for writing.
    ///
    /// # Errors
    /// [`Error::InUse`] when anybody else holds a part of the claim.
    pub fn exclusive(file: &File, path: &Path) -> Result<Self> {
        Self::both(file, path, Kind::Exclusive, Held::Both)
    }

    /// Claims an image together with other readers; keeps writers out.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody holds the image for writing.
    pub fn shared(file: &File, path: &Path) -> Result<Self> {
        Self::both(file, path, Kind::Shared, Held::Shared)
    }

    /// Claims an image as the successor of an owner that has offered it, or is gone. `file` must be
    /// open for writing.
    ///
    /// # Errors
    /// [`Error::InUse`] when the owner has not offered the image, or another successor was faster.
    pub fn succeed(file: &File, path: &Path) -> Result<Self> {
        let claim = Self::new(file, path)?;
        claim.lock_byte(SUCCESSOR, Kind::Exclusive)?;
        claim.set(Held::Successor);
        Ok(claim)
    }

    /// What the claim holds now.
    pub fn held(&self) -> Held {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a successor in; this process keeps its right to write. Nothing changes for a shared claim,
    /// or when it was already offered.
    ///
    /// # Errors
    /// [`Error::ClaimState`] when this process is not the owner (yet).
    pub fn offer_successor(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == Held::Successor && self.try_byte(OWNER, Kind::Exclusive)? {
            *held = Held::Both;
        }
        match *held {
            Held::Both => {
                self.unlock_byte(SUCCESSOR)?;
                *held = Held::Owner;
                Ok(())
            }
            Held::Owner | Held::Shared => Ok(()),
            state @ (Held::Successor | Held::Nothing) => Err(self.wrong_state("offer", state)),
        }
    }

    /// Takes back what was offered; nothing changes when nothing is offered.
    ///
    /// A source that cannot take it back still holds its own byte: it may go on writing, and nobody
    /// else can claim the image.
    ///
    /// # Errors
    /// [`Error::InUse`] while the successor still holds its byte; try again later.
    pub fn reclaim(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match *held {
            Held::Owner => {
                self.lock_byte(SUCCESSOR, Kind::Exclusive)?;
                *held = Held::Both;
                Ok(())
            }
            Held::Both | Held::Shared => Ok(()),
            state @ (Held::Successor | Held::Nothing) => Err(self.wrong_state("reclaim", state)),
        }
    }

    /// Takes the owner's byte too, once the former owner has let go; `true` when both are held.
    ///
    /// Nothing waits for it: the successor's byte alone keeps everybody else out.
    ///
    /// # Errors
    /// When the locks cannot be used at all.
    pub fn complete(&self) -> Result<bool> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match *held {
            Held::Successor => {
                let complete = self.try_byte(OWNER, Kind::Exclusive)?;
                if complete {
                    *held = Held::Both;
                }
                Ok(complete)
            }
            Held::Both | Held::Shared => Ok(true),
            state @ (Held::Owner | Held::Nothing) => Err(self.wrong_state("take over", state)),
        }
    }

    /// Lets go of the image.
    ///
    /// # Errors
    /// When the file system fails to unlock; the locks then end with the process.
    pub fn release(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != Held::Nothing {
            self.unlock_byte(SUCCESSOR)?;
            self.unlock_byte(OWNER)?;
            *held = Held::Nothing;
        }
        Ok(())
    }

    fn both(file: &File, path: &Path, kind: Kind, result: Held) -> Result<Self> {
        let claim = Self::new(file, path)?;
        // Owner first: while an owner is there, a stranger's attempt never touches the successor's
        // byte, and so cannot come in a successor's way.
        claim.lock_byte(OWNER, kind)?;
        if let Err(error) = claim.lock_byte(SUCCESSOR, kind) {
            claim.unlock_byte(OWNER)?;
            return Err(error);
        }
        claim.set(result);
        Ok(claim)
    }

    fn new(file: &File, path: &Path) -> Result<Self> {
        let file = file.try_clone().map_err(|source| Error::Lock {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            held: Mutex::new(Held::Nothing),
        })
    }

    fn set(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn try_byte(&self, byte: i64, kind: Kind) -> Result<bool> {
        ofd::try_lock(&self.file, byte, kind).map_err(|source| Error::Lock {
            path: self.path.clone(),
            source,
        })
    }

    fn lock_byte(&self, byte: i64, kind: Kind) -> Result<()> {
        if self.try_byte(byte, kind)? {
            Ok(())
        } else {
            Err(Error::InUse {
                path: self.path.clone(),
            })
        }
    }

    fn unlock_byte(&self, byte: i64) -> Result<()> {
        ofd::unlock(&self.file, byte).map_err(|source| Error::Lock {
            path: self.path.clone(),
            source,
        })
    }

    fn wrong_state(&self, operation: &'static str, held: Held) -> Error {
        Error::ClaimState {
            operation,
            path: self.path.clone(),
            state: held.describe(),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(%error, "claim not released");
        }
    }
}
