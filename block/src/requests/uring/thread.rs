//! The thread that alone uses the ring of a disk.
#![allow(unsafe_code)] // What the kernel fills or reads is kept here until it has ended.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::ring::{Done, Ring};
use super::work::{DEPTH, Request, Way, Work};
use crate::image::unflushed::Covered;
use crate::{BlockDevice, Buffer, Error, Result};

/// How long a ring that fails is left alone, which no kernel is known to have do.
const RECOVERY: Duration = Duration::from_millis(10);

/// A request that the kernel has.
struct InFlight {
    request: Request,
    /// Bytes that it moves.
    len: u64,
    /// What it makes durable, of a flush.
    covered: Option<Covered>,
}

/// What the thread has.
pub(super) struct RingThread<'w> {
    work: &'w Work,
    ring: Ring,
    /// By the numbers that the ring knows them by.
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Whether the ring will tell of the next call.
    listens: bool,
}

impl<'w> RingThread<'w> {
    pub(super) fn new(work: &'w Work, ring: Ring) -> Self {
        Self {
            work,
            ring,
            in_flight: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).collect(),
            listens: false,
        }
    }

    /// Its life: until there is nothing to do any more.
    pub(super) fn run(mut self) {
        let mut taken = Vec::with_capacity(DEPTH);
        loop {
            let over = self.work.take_for_ring(self.free.len(), &mut taken);
            if over && !self.listens {
                return;
            }
            if over {
                // The ring is not left while the kernel may write into its memory.
                self.work.caller.call();
            } else if !self.listens {
                self.ring.listen();
                self.listens = true;
            }
            for request in taken.drain(..) {
                self.start(request);
            }
            self.wait();
            self.work.ring_looks();
            while let Some(done) = self.ring.next_done() {
                self.take_in(done);
            }
        }
    }

    fn wait(&mut self) {
        if let Err(error) = self.ring.wait() {
            tracing::error!(image = %self.work.image.path().display(), %error, "the ring of a disk fails");
            std::thread::sleep(RECOVERY);
        }
    }

    fn take_in(&mut self, done: Done) {
        match done {
            Done::Called => self.listens = false,
            Done::Ended(number, result) => {
                let ended = self.in_flight.get_mut(number).and_then(Option::take);
                if let Some(ended) = ended {
                    self.free.push(number);
                    self.ended(ended, result);
                }
            }
        }
    }

    /// Hands a request to the kernel.
    fn start(&mut self, request: Request) {
        let Some(number) = self.free.pop() else {
            // Never more are taken than there is room for.
            return self.work.by_hand(request);
        };
        let (image, way) = (&*self.work.image, request.way);
        let mut begun = InFlight {
            request,
            len: 0,
            covered: None,
        };
        // A job that panics is dropped, and nobody else's.
        let started = catch_unwind(AssertUnwindSafe(|| {
            match way {
                Way::Transfer(direction, offset) => {
                    let buffers = begun.request.job.buffers();
                    begun.len = Buffer::total_len(buffers);
                    if begun.request.is_change() {
                        image.note_write(offset);
                        image.unflushed().begin_change();
                    }
                    // SAFETY: the request stays in its place until the kernel says that it has ended, and the thread does
                    // not end before (see `drop`). A job keeps its buffers, and their memory, as long as it is kept.
                    unsafe { self.ring.transfer(number, direction, buffers, offset) };
                }
                Way::Flush => {
                    begun.covered = Some(image.unflushed().begin_flush());
                    self.ring.flush(number);
                }
                Way::Hand => {}
            }
            begun
        }));
        match started {
            Ok(begun) if way == Way::Hand => {
                self.free.push(number);
                self.work.by_hand(begun.request);
            }
            Ok(begun) => self.in_flight[number] = Some(begun),
            Err(_panicked) => self.free.push(number),
        }
    }

    /// The kernel has ended a request.
    fn ended(&mut self, ended: InFlight, result: i32) {
        let image = &*self.work.image;
        let InFlight {
            request,
            len,
            covered,
        } = ended;
        if request.is_change() {
            image.unflushed().end_change();
        }
        let result = match u64::try_from(result) {
            Ok(done) if done == len => Ok(()),
            // Less than was asked for; the rest is not, and may be refused.
            Ok(_) => return self.work.by_hand(request),
            Err(_) => Err(-result),
        };
        let result: Result<()> = match result {
            Ok(()) => {
                if let Some(covered) = covered {
                    image.unflushed().confirm(covered);
                }
                Ok(())
            }
            // Not now, or not so: a thread that may be kept can, or says why not.
            Err(libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::EINVAL | libc::EOPNOTSUPP) => {
                return self.work.by_hand(request);
            }
            Err(number) => {
                let source = io::Error::from_raw_os_error(number);
                Err(failure(image, request.way, len, source))
            }
        };
        // A job that panics is dropped, and nobody else's.
        let _panicked = catch_unwind(AssertUnwindSafe(|| self.work.end(request, result)));
    }
}

fn failure(image: &crate::RawImage, way: Way, len: u64, source: io::Error) -> Error {
    match way {
        Way::Transfer(direction, offset) => {
            image.io_error(direction.operation(), offset, len, source)
        }
        Way::Flush | Way::Hand => image.io_error("flush", 0, image.size(), source),
    }
}

impl Drop for RingThread<'_> {
    fn drop(&mut self) {
        // By a panic of this thread itself: the kernel still has memory of these.
        while self.free.len() < DEPTH || self.listens {
            if self.listens {
                self.work.caller.call();
            }
            self.wait();
            while let Some(done) = self.ring.next_done() {
                match done {
                    Done::Called => self.listens = false,
                    Done::Ended(number, _) => {
                        if self
                            .in_flight
                            .get_mut(number)
                            .and_then(Option::take)
                            .is_some()
                        {
                            self.free.push(number);
                        }
                    }
                }
            }
        }
    }
}
