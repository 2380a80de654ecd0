//! How a raw image is opened, and what is no raw image.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Access, Error, Result};

/// Whether what is read stays in this host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// It does.
    On,
    /// It does not, where the file system can go without: another host may still write the image.
    Off,
    /// It does not, or the file is not opened.
    Never,
}

pub(crate) fn file(path: &Path, access: Access, caching: Caching) -> io::Result<File> {
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            // Non-blocking, so that a named pipe is refused and not waited for; files ignore it.
            .custom_flags(libc::O_NONBLOCK | flags)
            .open(path)
    };
    match caching {
        Caching::On => open(0),
        Caching::Never => open(libc::O_DIRECT),
        Caching::Off => match open(libc::O_DIRECT) {
            // A file system without: it has no storage that two hosts could share.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
            opened => opened,
        },
    }
}

pub(crate) fn error(path: PathBuf, access: Access, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path },
        io::ErrorKind::IsADirectory => Error::Directory { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Denied {
            path,
            access: match access {
                Access::ReadOnly => "reading",
                Access::ReadWrite => "reading and writing",
            },
            source,
        },
        _ => Error::Open { path, source },
    }
}

pub(crate) fn check_kind(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let path = path.to_owned();
    if kind.is_dir() {
        Err(Error::Directory { path })
    } else if kind.is_char_device() {
        Err(Error::NotAnImage {
            path,
            kind: "character device",
        })
    } else if kind.is_fifo() {
        Err(Error::NotAnImage {
            path,
            kind: "named pipe",
        })
    } else if kind.is_socket() {
        Err(Error::NotAnImage {
            path,
            kind: "socket",
        })
    } else {
        Ok(())
    }
}

/// The container format that the image begins (or, for VHD, ends) as.
pub(crate) fn foreign_format(file: &File, size: u64) -> Option<&'static str> {
    let mut head = [0; 8];
    // An image too short for a signature is judged by its size alone.
    file.read_exact_at(&mut head, 0).ok()?;
    let begins = |signature: &[u8]| head.starts_with(signature);
    if begins(b"QFI\xfb") {
        return Some("qcow2");
    }
    if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk D") {
        return Some("VMDK");
    }
    if begins(b"vhdxfile") {
        return Some("VHDX");
    }
    if begins(b"conectix") {
        return Some("VHD");
    }
    let mut foot = [0; 8];
    file.read_exact_at(&mut foot, size.checked_sub(512)?).ok()?;
    (&foot == b"conectix").then_some("VHD")
}
