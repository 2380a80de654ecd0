//! The exclusive open of a block device (`O_EXCL`), which the kernel grants to one alone.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::{Error, Result};

/// A descriptor by which a block device is open exclusively: nobody mounts it, and nobody else opens it so, by
/// whatever node, until the last copy of the descriptor is closed.
///
/// It is none that reads or writes: whoever succeeds opens the device beside it, and is given a copy.
#[derive(Debug)]
pub struct ExclusiveOpen {
    descriptor: OwnedFd,
    device: u64,
}

impl ExclusiveOpen {
    /// Opens exclusively the block device `device` at `path`.
    ///
    /// # Errors
    /// [`Error::OpenedExclusively`] when it is mounted, or somebody else has opened it so; [`Error::Open`]
    /// when it cannot be opened, or another device is at `path` by now.
    pub(crate) fn take(path: &Path, device: u64) -> Result<Self> {
        let failed = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
            .open(path);
        match opened {
            Ok(file) => Self::from_passed(file.into(), device).map_err(failed),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                Err(Error::OpenedExclusively {
                    path: path.to_owned(),
                })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The copy of an exclusive open of block device `device` that another process has passed on.
    ///
    /// # Errors
    /// When the descriptor is of another file.
    pub fn from_passed(descriptor: OwnedFd, device: u64) -> io::Result<Self> {
        let file = std::fs::File::from(descriptor);
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() || metadata.rdev() != device {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the descriptor is of another device",
            ));
        }
        Ok(Self {
            descriptor: file.into(),
            device,
        })
    }

    /// Number of the device.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Another copy of it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            descriptor: self.descriptor.try_clone()?,
            device: self.device,
        })
    }
}

impl AsFd for ExclusiveOpen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
