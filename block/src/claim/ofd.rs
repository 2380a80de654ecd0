//! Byte-range locks of an open file description.
#![allow(unsafe_code)] // fcntl has no safe wrapper for open-file-description locks.

use std::fs::File;
use std::io;
use std::ops::Range;
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
    match ask(file, libc::F_OFD_SETLK, byte..byte + 1, kind) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Lets go of bytes; those that are not locked stay so.
pub(crate) fn unlock(file: &File, bytes: Range<i64>) -> io::Result<()> {
    ask(file, libc::F_OFD_SETLK, bytes, libc::F_UNLCK).map(drop)
}

/// Whether somebody else holds a lock of either kind on one byte. What `file` itself holds is not seen.
pub(crate) fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let found = ask(file, libc::F_OFD_GETLK, byte..byte + 1, libc::F_WRLCK)?;
    Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
}

fn ask(
    file: &File,
    command: libc::c_int,
    bytes: Range<i64>,
    kind: libc::c_int,
) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        // The three kinds are 0, 1 and 2.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.end - bytes.start,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open, and the struct lives for the duration of the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
