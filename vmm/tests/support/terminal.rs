//! A terminal of a test's own.

// The library that this workspace has for system calls would have to be built anew for it.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::ptr::null_mut;

/// The end of who sits at it, and the end of who uses it.
pub fn terminal() -> (File, File) {
    let (mut user, mut end) = (-1, -1);
    // SAFETY: both numbers are valid for the call, which writes them; nothing else is passed.
    let made = unsafe {
        libc::openpty(
            &raw mut user,
            &raw mut end,
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else knows of them.
    unsafe { (File::from_raw_fd(user), File::from_raw_fd(end)) }
}
