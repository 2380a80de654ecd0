//! The system calls of raw images.
#![allow(unsafe_code)] // Vectored transfers take addresses of guest memory, which has no Rust reference.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::Buffer;

/// Most entries that the kernel takes in one vector (`UIO_MAXIOV`).
const MAX_VECTOR: usize = 1024;

/// Direction of a vectored transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// Image to memory.
    Read,
    /// Memory to image.
    Write,
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
