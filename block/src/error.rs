//! What can go wrong with an image.

use std::io;
use std::path::PathBuf;

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
        "disk image {path} looks like {format}, not like a raw image; say that it is raw if it really is"
    )]
    ForeignFormat {
        /// Image.
        path: PathBuf,
        /// The format that it looks like.
        format: &'static str,
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
