//! Guest memory into a socket by reference: the kernel takes the pages themselves, not a copy of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};

use super::iovec::{Cursor, EMPTY, Then, WINDOW, check};
use super::piece::Piece;

/// Bytes of pages that a pipe holds at once, if the host lets it have so many. The kernel hands on 64 KiB
/// at a time; a larger pipe takes fewer calls. What all pipes of an ordinary user may hold by default
/// (64 MiB) does for 256 of these.
const CAPACITY: usize = 256 << 10;
/// With room for less, as have pipes of a user who has too many, to copy is cheaper.
const LEAST: usize = 64 << 10;

/// A pipe through which references to pages pass on their way into one socket (splice(2), vmsplice(2)).
pub(crate) struct PagePipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl PagePipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// When the process or the host may have no more descriptors, or no pipe of a useful size.
    pub fn new() -> io::Result<Self> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let capacity = rustix::pipe::fcntl_setpipe_size(&into, CAPACITY)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&into))?;
        if capacity < LEAST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { out, into })
    }

    /// Sends `pages`, pieces of guest memory, completely. They are read when they leave the host or, within
    /// one host, when the peer receives them; until then they keep their memory, even when it is unmapped.
    ///
    /// The process has to ignore `SIGPIPE`, as those written in Rust do: splice(2) cannot be told to
    /// leave it out. After an error the pipe may hold what was never sent, and is not to be used again.
    ///
    /// # Errors
    /// As of [`super::send_all`]; `InvalidInput` for plain bytes, which may be others before they are read.
    pub fn send_all(&self, fd: BorrowedFd<'_>, pages: &[Piece<'_>], then: Then) -> io::Result<()> {
        let mut cursor = Cursor::to_read(&[], pages)?;
        let mut window = [EMPTY; WINDOW];
        while !cursor.is_done() {
            let count = cursor.fill(&mut window);
            // The pipe is empty, so there is room; without the flag the kernel would wait for more.
            // SAFETY: the entries point to guest memory that `pages` keep mapped; the kernel takes
            // references to its pages and only reads them.
            let held = unsafe {
                libc::vmsplice(
                    self.into.as_raw_fd(),
                    window.as_ptr(),
                    count,
                    libc::SPLICE_F_NONBLOCK,
                )
            };
            match held {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                1.. => {
                    cursor.advance(held as usize);
                    let then = if cursor.is_done() { then } else { Then::More };
                    self.pass_on(fd, held as usize, then)?;
                }
                _ => check(io::Error::last_os_error())?,
            }
        }
        Ok(())
    }

    /// Hands the `held` bytes of the pipe to the socket.
    fn pass_on(&self, fd: BorrowedFd<'_>, mut held: usize, then: Then) -> io::Result<()> {
        let flags = match then {
            Then::More => SpliceFlags::MORE,
            Then::End => SpliceFlags::empty(),
        };
        while held > 0 {
            match rustix::pipe::splice(&self.out, None, fd, None, held, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => held -= sent,
                Err(error) => check(error.into())?,
            }
        }
        Ok(())
    }
}
