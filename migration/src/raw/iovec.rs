//! Vectored socket I/O: pieces of plain bytes and of guest memory, without copying.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::piece::{self, Piece};

/// Entries handed to the kernel at once; more go in further calls.
pub(super) const WINDOW: usize = 256;

/// What comes after some pieces of a frame. The kernel waits for more before it sends a packet that has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The frame ends with them.
    End,
    /// More pieces of the frame.
    More,
}

/// What is still to be transferred of some pieces.
pub(super) struct Cursor<'a> {
    bytes: *mut u8,
    pieces: &'a [Piece<'a>],
    next: usize,
    offset: usize,
    buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> Cursor<'a> {
    /// All of `pieces`, to be read: nothing may be written by what [`Cursor::fill`] tells.
    pub fn to_read(bytes: &'a [u8], pieces: &'a [Piece<'a>]) -> io::Result<Self> {
        Self::new(bytes.as_ptr().cast_mut(), bytes.len(), pieces)
    }

    /// All of `pieces`, to be written.
    pub fn to_write(bytes: &'a mut [u8], pieces: &'a [Piece<'a>]) -> io::Result<Self> {
        Self::new(bytes.as_mut_ptr(), bytes.len(), pieces)
    }

    fn new(bytes: *mut u8, len: usize, pieces: &'a [Piece<'a>]) -> io::Result<Self> {
        piece::check(pieces, len)?;
        let mut cursor = Self {
            bytes,
            pieces,
            next: 0,
            offset: 0,
            buffer: PhantomData,
        };
        cursor.advance(0);
        Ok(cursor)
    }

    /// Describes what is left, or as much as `window` holds; tells the entries used.
    pub fn fill(&self, window: &mut [libc::iovec; WINDOW]) -> usize {
        let mut count = 0;
        let mut offset = self.offset;
        for piece in &self.pieces[self.next..] {
            if count == WINDOW {
                break;
            }
            if piece.is_empty() {
                continue;
            }
            let start = match *piece {
                // SAFETY: the piece was found to lie in the buffer.
                Piece::Bytes { at, .. } => unsafe { self.bytes.add(at) },
                Piece::Ram(slice) => slice.as_ptr(),
            };
            window[count] = libc::iovec {
                // SAFETY: the offset is less than the length of the piece that it belongs to.
                iov_base: unsafe { start.add(offset) }.cast(),
                iov_len: piece.len() - offset,
            };
            offset = 0;
            count += 1;
        }
        count
    }

    /// Notes that `done` bytes of it were transferred.
    pub fn advance(&mut self, mut done: usize) {
        while let Some(piece) = self.pieces.get(self.next) {
            let left = piece.len() - self.offset;
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
        self.next == self.pieces.len()
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

/// Sends `pieces` completely, those of bytes out of `bytes`.
pub(crate) fn send_all(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    pieces: &[Piece<'_>],
    then: Then,
) -> io::Result<()> {
    let flags = match then {
        Then::End => libc::MSG_NOSIGNAL,
        Then::More => libc::MSG_NOSIGNAL | libc::MSG_MORE,
    };
    let mut cursor = Cursor::to_read(bytes, pieces)?;
    let mut window = [EMPTY; WINDOW];
    while !cursor.is_done() {
        let count = cursor.fill(&mut window);
        let message = message(&mut window, count);
        // SAFETY: the entries point to `bytes`, which are only read, and to guest memory that `pieces`
        // keep mapped; the kernel copies with its own fault handling.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
        match sent {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            1.. => cursor.advance(sent as usize),
            _ => check(io::Error::last_os_error())?,
        }
    }
    Ok(())
}

/// Receives exactly `pieces`, those of bytes into `bytes`.
pub(crate) fn receive_all(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    pieces: &[Piece<'_>],
) -> io::Result<()> {
    let mut cursor = Cursor::to_write(bytes, pieces)?;
    let mut window = [EMPTY; WINDOW];
    while !cursor.is_done() {
        let count = cursor.fill(&mut window);
        let mut message = message(&mut window, count);
        // SAFETY: the entries point to `bytes`, which are exclusive, and to guest memory that `pieces`
        // keep mapped and to which no Rust reference exists. Where they overlap, the kernel writes one
        // after the other.
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
