//! Byte-range locks of an open file description.
#![allow(unsafe_code)] // fcntl has no safe wrapper for open-file-description locks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What a lock shuts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Other exclusive locks.
    Shared,
    /// All other locks.
    Exclusive,
}

/// Tries to lock one byte; `false` when somebody else's lock is in the way.
pub(crate) fn try_lock(file: &File, byte: i64, kind: Kind) -> io::Result<bool> {
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    };
    match set(file, byte, kind) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Lets go of one byte.
pub(crate) fn unlock(file: &File, byte: i64) -> io::Result<()> {
    set(file, byte, libc::F_UNLCK)
}

fn set(file: &File, byte: i64, kind: libc::c_int) -> io::Result<()> {
    let lock = libc::flock {
        // The three kinds are 0, 1 and 2.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open, and the struct lives for the duration of the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
