//! The system calls of raw images.
#![allow(unsafe_code)] // Vectored transfers take addresses of guest memory, which has no Rust reference.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::{Buffer, Durability};

/// Asks a loop device what lies below it (linux/loop.h).
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;

/// Most entries that the kernel takes in one vector (`UIO_MAXIOV`).
pub(crate) const MAX_VECTOR: usize = 1024;

/// Direction of a vectored transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Image to memory.
    Read,
    /// Memory to image.
    Write,
    /// Memory to image, and durable when it is done (`RWF_DSYNC`).
    WriteDurably,
}

impl Direction {
    /// That of a write.
    pub(crate) fn of_write(durability: Durability) -> Self {
        match durability {
            Durability::Flushed => Self::Write,
            Durability::Immediate => Self::WriteDurably,
        }
    }

    /// What it is called in an error.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write | Self::WriteDurably => "write",
        }
    }
}

/// What a loop device is backed by (`struct loop_info64`, linux/loop.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoopStatus {
    /// Device number of the file system that the file is on.
    pub(crate) device: u64,
    /// Inode number of the file.
    pub(crate) inode: u64,
    /// First byte of the file that the device shows.
    pub(crate) offset: u64,
    /// Most bytes that it shows; 0 for all.
    pub(crate) limit: u64,
}

/// What `file`, a block device, is backed by, if it is a loop device.
pub(crate) fn loop_status(file: &File) -> io::Result<LoopStatus> {
    let mut info = [0_u64; 232 / 8];
    // SAFETY: the descriptor is open, and the array has the size of the struct that the kernel fills.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [device, inode, _, offset, limit, ..] = info;
    Ok(LoopStatus {
        device,
        inode,
        offset,
        limit,
    })
}

/// Moves as much as the kernel does at once between `buffers` and `offset`; 0 is the end of the file.
pub(crate) fn transfer(
    file: &File,
    direction: Direction,
    buffers: &[Buffer<'_>],
    offset: u64,
) -> io::Result<usize> {
    let offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let iovecs = Buffer::as_iovecs(&buffers[..buffers.len().min(MAX_VECTOR)]);
    // At most MAX_VECTOR, which fits.
    let count = iovecs.len() as libc::c_int;
    loop {
        // SAFETY: the vector and the memory that it names live for the duration of the call, and the
        // memory may be changed by anybody at any time: no reference to it exists.
        let done = unsafe {
            match direction {
                Direction::Read => libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset),
                Direction::Write => libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset),
                Direction::WriteDurably => libc::pwritev2(
                    file.as_raw_fd(),
                    iovecs.as_ptr(),
                    count,
                    offset,
                    libc::RWF_DSYNC,
                ),
            }
        };
        if let Ok(done) = usize::try_from(done) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
