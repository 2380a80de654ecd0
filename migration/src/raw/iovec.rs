//! Vectored socket I/O: a head of plain bytes followed by guest memory, without copying.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::slice::RamSlice;

/// Entries handed to the kernel at once; more go in further calls.
pub(super) const WINDOW: usize = 256;

/// What is still to be transferred of a head and the guest memory after it.
pub(super) struct Cursor<'a> {
    head: *mut u8,
    head_len: usize,
    body: &'a [RamSlice<'a>],
    next: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// All of `head_len` bytes at `head`, then of `body`.
    pub fn new(head: *mut u8, head_len: usize, body: &'a [RamSlice<'a>]) -> Self {
        Self {
            head,
            head_len,
            body,
            next: 0,
            offset: 0,
        }
    }

    /// Describes what is left, or as much as `window` holds; tells the entries used.
    pub fn fill(&self, window: &mut [libc::iovec; WINDOW]) -> usize {
        let mut count = 0;
        if self.head_len > 0 {
            window[0] = libc::iovec {
                iov_base: self.head.cast(),
                iov_len: self.head_len,
            };
            count = 1;
        }
        let mut offset = self.offset;
        for slice in &self.body[self.next..] {
            if count == WINDOW {
                break;
            }
            let part = slice.part(offset, usize::MAX);
            offset = 0;
            window[count] = libc::iovec {
                iov_base: part.as_ptr().cast(),
                iov_len: part.len(),
            };
            count += 1;
        }
        count
    }

    /// Notes that `done` bytes of it were transferred.
    pub fn advance(&mut self, mut done: usize) {
        let head = done.min(self.head_len);
        // SAFETY: `head` is at most what is left of the head.
        self.head = unsafe { self.head.add(head) };
        self.head_len -= head;
        done -= head;
        while let Some(slice) = self.body.get(self.next) {
            let left = slice.len() - self.offset;
            if done < left {
                self.offset += done;
                return;
            }
            done -= left;
            self.next += 1;
            self.offset = 0;
        }
    }

    pub fn is_done(&self) -> bool {
        self.head_len == 0
            && self.body[self.next..]
                .iter()
                .all(|s| s.len() == self.offset)
    }
}

fn message(window: &mut [libc::iovec; WINDOW], count: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = window.as_mut_ptr();
    message.msg_iovlen = count;
    message
}

pub(super) const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Sends `head`, then `body`, completely.
pub(crate) fn send_all(fd: BorrowedFd<'_>, head: &[u8], body: &[RamSlice<'_>]) -> io::Result<()> {
    send_with(fd, head, body, libc::MSG_NOSIGNAL)
}

/// The same with these `flags` of sendmsg(2).
pub(super) fn send_with(
    fd: BorrowedFd<'_>,
    head: &[u8],
    body: &[RamSlice<'_>],
    flags: libc::c_int,
) -> io::Result<()> {
    let mut cursor = Cursor::new(head.as_ptr().cast_mut(), head.len(), body);
    let mut window = [EMPTY; WINDOW];
    while !cursor.is_done() {
        let count = cursor.fill(&mut window);
        let message = message(&mut window, count);
        // SAFETY: the entries point to `head`, which is only read, and to guest memory that `body`
        // keeps mapped; the kernel copies with its own fault handling.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
        match sent {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            1.. => cursor.advance(sent as usize),
            _ => check(io::Error::last_os_error())?,
        }
    }
    Ok(())
}

/// Receives exactly `head`, then exactly `body`.
pub(crate) fn receive_all(
    fd: BorrowedFd<'_>,
    head: &mut [u8],
    body: &[RamSlice<'_>],
) -> io::Result<()> {
    let mut cursor = Cursor::new(head.as_mut_ptr(), head.len(), body);
    let mut window = [EMPTY; WINDOW];
    while !cursor.is_done() {
        let count = cursor.fill(&mut window);
        let mut message = message(&mut window, count);
        // SAFETY: the entries point to `head`, which is exclusive, and to guest memory that `body`
        // keeps mapped and to which no Rust reference exists.
        let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_WAITALL) };
        match got {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1.. => cursor.advance(got as usize),
            _ => check(io::Error::last_os_error())?,
        }
    }
    Ok(())
}

pub(super) fn check(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}
