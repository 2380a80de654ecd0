//! A backend of raw images by a ring of the kernel (io_uring), past the page cache.
//!
//! # Who does what
//! - The thread that submits carries the request out itself if there is no other, and such requests are over in a moment:
//!   nobody has to be woken for it.
//! - Else one thread of the disk hands reads, writes and flushes to the ring, as many at once as there are, and ends
//!   them. It alone uses the ring. Called once, it goes on until there is nothing to take or to wait for.
//! - What a ring cannot do, or not so, is done by a *hand*, a thread that may be kept: discards and zeroes, requests that do
//!   not fit the storage's blocks (through the page cache), and whatever the ring left undone.
//!
//! # Invariants
//! - Requests that overlap, one of them a change, are never given away at the same time. One that goes through the page
//!   cache counts as wide as the blocks that the cache reads and writes for it.
//! - What the kernel reads or fills is kept until it has said that it is done, whatever is dropped meanwhile and whoever
//!   panics. A disk that is dropped while a request hangs leaves the thread behind with it.
//! - A flush covers what had ended when it was submitted: it is given to the kernel later than that.
//!
//! The ring is made, and limited to what it needs for ever, when the disk is, as a process that is confined must not make
//! one. So it is kept by the disk ([`RingDisk`]), and the backends over it ([`Uring`]) are made and exchanged at any time.

mod ring;
mod thread;
mod work;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

pub use work::DEPTH;

use crate::layer::tracker::{ChangeMap, Tracker};
use crate::{Backend, BlockDevice, Error, Job, RawImage, Result, Submitter};
use ring::Ring;
use thread::RingThread;
use work::Work;

/// Threads that carry out what a ring cannot.
const HANDS: usize = 2;

/// How long the drop of a disk waits for requests to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the threads of a disk with a ring call before they carry any request out.
#[derive(Debug, Clone, Copy)]
pub struct Begin {
    /// The one that uses the ring, when that has been made.
    pub ring: fn(),
    /// Those that carry out what it cannot, first of all.
    pub hand: fn(),
}

/// A raw image with a ring of its own.
pub struct RingDisk {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

impl RingDisk {
    /// Makes a ring for `image`, which was [opened past the page cache](RawImage::open_direct), and starts its threads.
    ///
    /// # Errors
    /// [`Error::NoRing`] where the kernel has none, or none for this process; then [`Pool`](crate::Pool) serves.
    /// [`Error::Thread`] when a thread cannot be started.
    pub fn new(image: Arc<RawImage>, begin: Begin) -> Result<Self> {
        let path = image.path().to_owned();
        let no_ring = |source| Error::NoRing {
            path: path.clone(),
            source,
        };
        if image.direct().is_none() {
            let source = io::Error::other("it is used through the page cache");
            return Err(no_ring(source));
        }
        let work = Arc::new(Work::new(image).map_err(no_ring)?);
        // Dropping the disk ends the threads that were started.
        let mut disk = Self {
            work,
            threads: Vec::with_capacity(1 + HANDS),
        };
        let (made, is_made) = channel();
        disk.start("disk-ring".into(), move |work| {
            let Some(direct) = work.image.direct() else {
                return;
            };
            match Ring::new(DEPTH, direct.file(), &work.caller) {
                Ok(ring) => {
                    (begin.ring)();
                    let _ = made.send(Ok(()));
                    drop(made);
                    RingThread::new(work, ring).run();
                }
                Err(error) => {
                    let _ = made.send(Err(error));
                }
            }
        })?;
        is_made
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))
            .map_err(no_ring)?;
        for index in 0..HANDS {
            disk.start(format!("disk-hand-{index}"), move |work| {
                (begin.hand)();
                work.be_a_hand();
            })?;
        }
        Ok(disk)
    }

    /// The image.
    pub fn image(&self) -> &Arc<RawImage> {
        &self.work.image
    }

    fn start(&mut self, name: String, life: impl FnOnce(&Work) + Send + 'static) -> Result<()> {
        self.work.expect_thread();
        let work = Arc::clone(&self.work);
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(256 << 10)
            .spawn(move || {
                let alive = Alive(work);
                life(&alive.0);
            });
        match thread {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(source) => {
                self.work.thread_ended();
                let path = self.work.image.path().to_owned();
                Err(Error::Thread { path, source })
            }
        }
    }
}

impl Drop for RingDisk {
    fn drop(&mut self) {
        let me = std::thread::current().id();
        let all = self.threads.len();
        self.threads.retain(|thread| thread.thread().id() != me);
        // The last request may be what held the disk, and this one of its threads.
        let remain = all - self.threads.len();
        self.work.stop();
        if !self.work.left_within(remain, FAREWELL) {
            // A thread that is left behind keeps what its requests need, and ends with them.
            return;
        }
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for RingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingDisk")
            .field("image", &self.image().path())
            .finish_non_exhaustive()
    }
}

/// The requests of a raw image, carried out by its ring.
pub struct Uring {
    disk: Arc<RingDisk>,
    /// Where changes are marked, if they are.
    map: Option<Arc<ChangeMap>>,
    /// The same in the form that blocks.
    blocking: Arc<dyn BlockDevice>,
}

impl Uring {
    /// The image as it is.
    pub fn new(disk: Arc<RingDisk>) -> Self {
        Self {
            blocking: disk.image().clone(),
            disk,
            map: None,
        }
    }

    /// The image below a [`Tracker`] that marks its changes in `map`, which is one for a disk of its size.
    pub fn tracked(disk: Arc<RingDisk>, map: Arc<ChangeMap>) -> Self {
        Self {
            blocking: Arc::new(Tracker::new(disk.image().clone(), Arc::clone(&map))),
            disk,
            map: Some(map),
        }
    }
}

impl Backend for Uring {
    fn submit(&self, job: Box<dyn Job>, submitter: Submitter) {
        self.disk.work.submit(job, submitter, self.map.as_ref());
    }

    fn has_room(&self) -> bool {
        self.disk.work.has_room()
    }

    fn disk(&self) -> &dyn BlockDevice {
        &*self.blocking
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("disk", &self.disk)
            .field("tracked", &self.map.is_some())
            .finish_non_exhaustive()
    }
}

/// A thread of a disk, counted until it ends, also by a panic.
struct Alive(Arc<Work>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.thread_ended();
    }
}
