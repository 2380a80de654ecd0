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
//! | `Claim::successor`, before commit | A | B |
//! | commit: nothing to do | A | B |
//! | the source's process lets go | | B |
//! | [`Claim::complete`] | | A B |
//! | or, after a failure: destination gone, [`Claim::reclaim`] | A B | |
//!
//! Beside these bytes, everybody who holds a part of a claim also holds those by which QEMU knows that an
//! image is in use. And where the image is a loop device, the file below it is locked as well, so that
//! nobody comes in by another way to the same bytes.

pub mod exclusive_open;
mod ofd;
mod qemu_locks;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Access, Error, Result};
use ofd::Kind;

pub use exclusive_open::ExclusiveOpen;

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

/// A file that is locked for an image: the image itself, or what lies below it.
#[derive(Debug)]
pub(crate) struct Locked {
    file: File,
    path: PathBuf,
}

impl Locked {
    /// The file that `file` is open on; the locks are those of its open file description.
    pub(crate) fn new(file: &File, path: &Path) -> Result<Self> {
        let failed = |source| Error::Lock {
            path: path.to_owned(),
            source,
        };
        Ok(Self {
            file: file.try_clone().map_err(failed)?,
            path: path.to_owned(),
        })
    }

    /// Whether somebody else holds the owner's byte.
    pub(crate) fn has_owner(&self) -> Result<bool> {
        self.result(ofd::is_locked(&self.file, OWNER))
    }

    /// Whether somebody else uses it, as QEMU does, in a way that does not go with this access.
    pub(crate) fn is_used_by_qemu(&self, access: Access) -> Result<bool> {
        self.result(qemu_locks::is_contradicted(&self.file, access))
    }

    fn try_byte(&self, byte: i64, kind: Kind) -> Result<bool> {
        self.result(ofd::try_lock(&self.file, byte, kind))
    }

    fn unlock_byte(&self, byte: i64) -> Result<()> {
        self.result(ofd::unlock(&self.file, byte..byte + 1))
    }

    fn result<T>(&self, result: io::Result<T>) -> Result<T> {
        result.map_err(|source| Error::Lock {
            path: self.path.clone(),
            source,
        })
    }
}

/// The right to use an image, held by locks that end with the process.
///
/// The locks belong to the open file descriptions; they are let go when the claim is released or
/// dropped.
#[derive(Debug)]
pub struct Claim {
    /// Never empty; the image itself comes first.
    files: Vec<Locked>,
    access: Access,
    held: Mutex<Held>,
}

impl Claim {
    /// Claims an image for this process alone, or together with other readers where it only reads.
    ///
    /// # Errors
    /// [`Error::InUse`] when anybody else's claim is in the way, [`Error::InUseByQemu`] when QEMU or one of
    /// its tools is.
    pub(crate) fn owner(files: Vec<Locked>, access: Access) -> Result<Self> {
        match access {
            Access::ReadWrite => Self::both(files, access, Kind::Exclusive, Held::Both),
            Access::ReadOnly => Self::both(files, access, Kind::Shared, Held::Shared),
        }
    }

    /// Claims an image as the successor of an owner that has offered it, or is gone; as
    /// [`Claim::owner`] where it only reads.
    ///
    /// # Errors
    /// [`Error::InUse`] when the owner has not offered the image, or another successor was faster.
    pub(crate) fn successor(files: Vec<Locked>, access: Access) -> Result<Self> {
        if access == Access::ReadOnly {
            return Self::owner(files, access);
        }
        let claim = Self::new(files, access);
        // From here on, dropping it lets go of what it has got.
        claim.set(Held::Successor);
        claim.lock_byte(SUCCESSOR, Kind::Exclusive)?;
        // Not looked at whether QEMU uses it: the owner's own bytes would be seen, and they have kept QEMU
        // out.
        claim.lock_for_qemu()?;
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
            self.on_each(|file| qemu_locks::unlock(&file.file))?;
            self.unlock_byte(SUCCESSOR)?;
            self.unlock_byte(OWNER)?;
            *held = Held::Nothing;
        }
        Ok(())
    }

    fn both(files: Vec<Locked>, access: Access, kind: Kind, result: Held) -> Result<Self> {
        let claim = Self::new(files, access);
        claim.set(result);
        // Owner first: while an owner is there, a stranger's attempt never touches the successor's
        // byte, and so cannot come in a successor's way.
        claim.lock_byte(OWNER, kind)?;
        claim.lock_byte(SUCCESSOR, kind)?;
        // As QEMU does: first its own, then a look at the others', so that of two who come at once not
        // both get in.
        claim.lock_for_qemu()?;
        for file in &claim.files {
            if file.is_used_by_qemu(access)? {
                return Err(Error::InUseByQemu {
                    path: file.path.clone(),
                });
            }
        }
        Ok(claim)
    }

    fn new(files: Vec<Locked>, access: Access) -> Self {
        Self {
            files,
            access,
            held: Mutex::new(Held::Nothing),
        }
    }

    fn set(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Locks a byte of every file; those that are ours already stay so when another is not to be had.
    fn try_byte(&self, byte: i64, kind: Kind) -> Result<bool> {
        let mut all = true;
        for file in &self.files {
            all &= file.try_byte(byte, kind)?;
        }
        Ok(all)
    }

    /// Locks a byte of every file, or of none.
    fn lock_byte(&self, byte: i64, kind: Kind) -> Result<()> {
        for file in &self.files {
            if !file.try_byte(byte, kind)? {
                self.unlock_byte(byte)?;
                return Err(Error::InUse {
                    path: file.path.clone(),
                });
            }
        }
        Ok(())
    }

    fn lock_for_qemu(&self) -> Result<()> {
        self.on_each(|file| qemu_locks::lock(&file.file, self.access))
    }

    fn unlock_byte(&self, byte: i64) -> Result<()> {
        self.files
            .iter()
            .try_for_each(|file| file.unlock_byte(byte))
    }

    fn on_each(&self, act: impl Fn(&Locked) -> io::Result<()>) -> Result<()> {
        self.files
            .iter()
            .try_for_each(|file| file.result(act(file)))
    }

    fn wrong_state(&self, operation: &'static str, held: Held) -> Error {
        Error::ClaimState {
            operation,
            path: self.files[0].path.clone(),
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
