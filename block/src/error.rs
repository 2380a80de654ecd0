//! What can go wrong with an image.

use std::io;
use std::path::PathBuf;

use crate::image::qcow2::Refusal;

/// Result of an operation on an image.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on an image; each variant names the image and the place in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image does not exist.
    #[error("disk image {path} does not exist")]
    Missing {
        /// Image.
        path: PathBuf,
    },
    /// The rights of this process do not allow the access.
    #[error("no permission to open disk image {path} for {access}")]
    Denied {
        /// Image.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        access: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The image could not be opened for another reason.
    #[error("open disk image {path}")]
    Open {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A mark on the file of an image cannot be read or changed.
    #[error("read or change a mark on disk image {path}")]
    Mark {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The path names a directory.
    #[error("disk image {path} is a directory")]
    Directory {
        /// Path.
        path: PathBuf,
    },
    /// The path names neither a regular file nor a block special file.
    #[error("disk image {path} is a {kind}, not a file or block device")]
    NotAnImage {
        /// Path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The image has no bytes.
    #[error("disk image {path} is empty")]
    Empty {
        /// Image.
        path: PathBuf,
    },
    /// The size is not a whole number of sectors.
    #[error(
        "disk image {path} has {size} bytes, which is not a multiple of 512: truncated, or not a raw image"
    )]
    Unaligned {
        /// Image.
        path: PathBuf,
        /// Size in bytes.
        size: u64,
    },
    /// The image begins as one of another format does.
    #[error(
        "disk image {path} looks like {format}, not like a raw image; say which it is by format=, format=raw only if it \
         really is"
    )]
    ForeignFormat {
        /// Image.
        path: PathBuf,
        /// The format that it looks like.
        format: &'static str,
    },
    /// The image is a qcow2 image that is not used as it is.
    #[error("disk image {path} {why}")]
    Qcow2 {
        /// Image.
        path: PathBuf,
        /// What it has, and what helps.
        why: Refusal,
    },
    /// The image was to be created, and there is a file already.
    #[error("{path} exists already, and is not overwritten")]
    Exists {
        /// Image.
        path: PathBuf,
    },
    /// The size cannot be had, or only with a loss.
    #[error("disk image {path} cannot have {size} bytes: {why}")]
    Size {
        /// Image.
        path: PathBuf,
        /// Size in bytes.
        size: u64,
        /// Why.
        why: &'static str,
    },
    /// A request lies outside the image.
    #[error("request for {len} bytes at {offset} is outside disk image {path} of {size} bytes")]
    OutOfRange {
        /// Image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the image in bytes.
        size: u64,
    },
    /// A change was asked of an image that was opened read-only.
    #[error("disk image {path} is read-only")]
    ReadOnly {
        /// Image.
        path: PathBuf,
    },
    /// The file ended before the image does: it was truncated while in use.
    #[error("disk image {path} ends at or before byte {offset}: truncated while in use")]
    Short {
        /// Image.
        path: PathBuf,
        /// First byte that could not be read.
        offset: u64,
    },
    /// The storage cannot be used past the page cache.
    #[error("disk image {path} cannot be used past the page cache (cache=none)")]
    NotDirect {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The kernel gives this process no ring for requests, or not one that is limited to what they need.
    #[error("no io_uring for requests to disk image {path}")]
    NoRing {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The threads that carry requests out could not be started.
    #[error("start a thread for requests to disk image {path}")]
    Thread {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A request needs what is not here yet; it succeeds when that has come.
    #[error("{len} bytes at {offset} of disk image {path} have not come yet")]
    Absent {
        /// Image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A request needs what is not here, and whoever has it cannot be asked; its user wants that to be an error.
    #[error("{len} bytes at {offset} of disk image {path} cannot be fetched: {why}")]
    SourceLost {
        /// Image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Why.
        why: String,
    },
    /// The file is no presence map, or not that of the disk.
    #[error("{path} is {why}")]
    PresenceMap {
        /// File.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A request has to wait for the rate that the disk is limited to; it succeeds when it is made again later.
    #[error("disk image {path} has had what it may have for now")]
    Throttled {
        /// Image.
        path: PathBuf,
    },
    /// The storage has no room for a request; it succeeds when it is made again and there is some.
    #[error("there is no room for what is written to disk image {path}")]
    NoRoom {
        /// Image.
        path: PathBuf,
    },
    /// The operating system refused an operation.
    #[error("{operation} {len} bytes at {offset} of disk image {path}")]
    Io {
        /// What was done: `read`, `write`, `flush`, `discard`, `write zeroes to`, `map`.
        operation: &'static str,
        /// Image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Cause.
        source: io::Error,
    },
    /// Another process holds the claim on the image.
    #[error("disk image {path} is in use by another virtual machine or process")]
    InUse {
        /// Image.
        path: PathBuf,
    },
    /// QEMU, one of its tools, or a program that locks images as they do, uses the image.
    #[error("disk image {path} is in use by QEMU, or by a program that locks images as QEMU does")]
    InUseByQemu {
        /// Image.
        path: PathBuf,
    },
    /// Somebody else has opened the block device exclusively.
    #[error("block device {path} is mounted, or held by another program")]
    OpenedExclusively {
        /// Block device.
        path: PathBuf,
    },
    /// The claim cannot do what was asked in the state that it is in.
    #[error("cannot {operation} disk image {path}: {state}")]
    ClaimState {
        /// What was asked.
        operation: &'static str,
        /// Image.
        path: PathBuf,
        /// What the claim holds.
        state: &'static str,
    },
    /// The file system refused to lock the image.
    #[error("lock disk image {path}")]
    Lock {
        /// Image.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl Error {
    /// Whether the request has changed nothing, and is to be made again when something has come.
    pub fn is_for_now(&self) -> bool {
        matches!(
            self,
            Self::Absent { .. } | Self::Throttled { .. } | Self::NoRoom { .. }
        )
    }

    /// Whether it failed because its storage has no room for it.
    pub fn is_no_room(&self) -> bool {
        let full = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => {
                let code = source.raw_os_error();
                code.is_some_and(|code| full.contains(&code))
            }
            _ => false,
        }
    }
}
