//! A listening socket that the process was started with, as by socket activation.

// A number on the command line becomes a descriptor that this process owns.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes over descriptor `fd`; it is closed with what is made of it, and not inherited further.
///
/// # Errors
/// When no such descriptor was inherited: it is not open, or it is one that this process opened for
/// itself, which all close on exec.
pub(crate) fn socket(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the borrow ends with this function, and a number that is not open gives EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} was not inherited"),
        ));
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open and was inherited, so nothing in this process owns it; a second call for the
    // same number finds it closed on exec and fails.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn only_what_was_inherited_is_taken_over() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert!(socket(own.as_raw_fd()).is_err(), "opened by this process");
        assert!(socket(1_000_000).is_err(), "not open");
        fcntl_setfd(&own, FdFlags::empty()).unwrap();
        let number = own.into_raw_fd();
        let taken = socket(number).unwrap();
        assert!(socket(number).is_err(), "taken over already");
        drop(taken);
    }
}
