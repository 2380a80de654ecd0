//! A ring of the kernel (io_uring) that can do nothing but move bytes of one file, and make them durable.
#![allow(unsafe_code)] // The kernel reads and writes memory by its address, after the call that asked for it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::register::{Probe, Restriction};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::fd::OwnedFd;

use crate::Buffer;
use crate::image::sys::Direction;

/// The image, among the files that the ring knows.
const IMAGE: types::Fixed = types::Fixed(0);
/// The event by which the thread of the ring is called.
const CALLS: types::Fixed = types::Fixed(1);
/// What a call is known by when it has come; requests have smaller numbers.
const CALL: u64 = u64::MAX;

/// What has come of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The thread was called, and must [`Ring::listen`] to hear the next call.
    Called,
    /// The request of this number has ended: bytes, or an error number below zero.
    Ended(usize, i32),
}

/// Calls the thread of a ring that waits.
#[derive(Debug)]
pub(super) struct Caller(OwnedFd);

impl Caller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    pub(super) fn call(&self) {
        // Fails only when the counter is full, and then the thread is about to wake up.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// The ring of one thread, which alone may use it from [`Ring::enable`] on.
pub(super) struct Ring {
    ring: IoUring,
    /// Where the kernel writes that there was a call.
    called: Box<u64>,
}

impl Ring {
    /// A ring for `depth` requests at a time to `image`, of this thread.
    ///
    /// It can never do more than this, whoever gets hold of it: the kernel refuses all other operations, other files, and
    /// to be told of any. Fails where the kernel has no such ring, or none for this process.
    pub(super) fn new(depth: usize, image: &File, caller: &Caller) -> io::Result<Self> {
        // One more for the call.
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let ring = IoUring::builder()
            .setup_r_disabled()
            // Only this thread uses it, and what there is to do for a request that has ended is done by it when it
            // asks for that: no other thread is woken, and it itself only by what it waits for.
            .setup_single_issuer()
            .setup_defer_taskrun()
            // One that is refused does not keep those behind it from being looked at.
            .setup_submit_all()
            .build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Read::CODE,
        ];
        if !codes.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        ring.submitter()
            .register_files(&[image.as_raw_fd(), caller.0.as_raw_fd()])?;
        let of_known_files = squeue::Flags::FIXED_FILE.bits();
        let mut restrictions: Vec<Restriction> =
            codes.into_iter().map(Restriction::sqe_op).collect();
        restrictions.push(Restriction::sqe_flags_allowed(of_known_files));
        restrictions.push(Restriction::sqe_flags_required(of_known_files));
        ring.submitter().register_restrictions(&mut restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            called: Box::new(0),
        })
    }

    /// Asks for a transfer, the request of number `number`.
    ///
    /// # Safety
    /// `buffers` and the memory that they name stay until the request has ended.
    pub(super) unsafe fn transfer(
        &mut self,
        number: usize,
        direction: Direction,
        buffers: &[Buffer<'_>],
        offset: u64,
    ) {
        let iovecs = Buffer::as_iovecs(buffers);
        // At most `MAX_VECTOR`, see `work.rs`.
        let (iovecs, count) = (iovecs.as_ptr(), iovecs.len() as u32);
        let entry = match direction {
            Direction::Read => opcode::Readv::new(IMAGE, iovecs, count)
                .offset(offset)
                .build(),
            Direction::Write => opcode::Writev::new(IMAGE, iovecs, count)
                .offset(offset)
                .build(),
            Direction::WriteDurably => opcode::Writev::new(IMAGE, iovecs, count)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC)
                .build(),
        };
        // SAFETY: as the caller promises; the entry names nothing else.
        unsafe { self.push(entry.user_data(number as u64)) };
    }

    /// Asks that the image be made durable, the request of number `number`.
    pub(super) fn flush(&mut self, number: usize) {
        let flush = opcode::Fsync::new(IMAGE).flags(types::FsyncFlags::DATASYNC);
        // SAFETY: it takes no memory.
        unsafe { self.push(flush.build().user_data(number as u64)) };
    }

    /// Has the next call heard.
    pub(super) fn listen(&mut self) {
        let at = std::ptr::from_mut(&mut *self.called).cast::<u8>();
        let read = opcode::Read::new(CALLS, at, size_of::<u64>() as u32);
        // SAFETY: the memory lives as long as the ring, and whoever drops that has heard the last call (`Ring::drop`).
        unsafe { self.push(read.build().user_data(CALL)) };
    }

    /// # Safety
    /// The memory that the entry names stays until it has ended.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: as the caller promises.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // There are as many entries as requests and calls at a time; so this is for nothing, and does no harm.
            let _ = self.ring.submit();
        }
    }

    /// Hands what was asked for to the kernel, and waits until something is done.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Something is done, and has to be taken first; or memory is short at the moment.
                    Some(libc::EBUSY | libc::EAGAIN) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    /// What is done, one after the other.
    pub(super) fn next_done(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        Some(match usize::try_from(entry.user_data()) {
            Ok(number) if entry.user_data() != CALL => Done::Ended(number, entry.result()),
            _ => Done::Called,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of an entry that is handed to a ring; `None` when it is taken.
    fn refused(ring: &mut Ring, entry: squeue::Entry) -> Option<i32> {
        // SAFETY: it names no memory.
        unsafe { ring.push(entry.user_data(1)) };
        ring.wait().unwrap();
        match ring.next_done() {
            Some(Done::Ended(1, result)) => (result < 0).then_some(-result),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_ring_does_nothing_but_what_it_was_made_for() {
        let image = tempfile::tempfile().unwrap();
        image.set_len(4096).unwrap();
        let caller = Caller::new().unwrap();
        let mut ring = match Ring::new(4, &image, &caller) {
            Ok(ring) => ring,
            Err(error) => {
                println!("skipped: no io_uring: {error}");
                return;
            }
        };
        let by_number = types::Fd(image.as_raw_fd());
        let nowhere = std::ptr::null_mut();
        for (what, entry) in [
            ("nothing", opcode::Nop::new().build()),
            (
                "a file that it does not know",
                opcode::Fsync::new(by_number).build(),
            ),
            (
                "a read of one",
                opcode::Read::new(by_number, nowhere, 0).build(),
            ),
            (
                "opening",
                opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
            ),
            ("allocating", opcode::Fallocate::new(IMAGE, 1).build()),
            ("sending", opcode::Send::new(IMAGE, nowhere, 0).build()),
            (
                "what comes after another",
                opcode::Fsync::new(IMAGE)
                    .build()
                    .flags(squeue::Flags::IO_LINK),
            ),
        ] {
            assert_eq!(refused(&mut ring, entry), Some(libc::EACCES), "{what}");
        }
        assert_eq!(refused(&mut ring, opcode::Fsync::new(IMAGE).build()), None);
        let more = ring.ring.submitter().register_eventfd(caller.0.as_raw_fd());
        assert_eq!(more.unwrap_err().raw_os_error(), Some(libc::EACCES));
        let files = ring.ring.submitter().register_files_update(0, &[0]);
        assert_eq!(files.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
