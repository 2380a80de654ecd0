//! Whether the thread of a queue is away with a request.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// What the threads of queues tell the one that stands in for them.
#[derive(Debug)]
pub(super) struct Away {
    /// Of each queue: how often its thread has left and come back; odd while it is away.
    counts: Vec<AtomicU64>,
    /// Nobody looks at the counts until the event wakes the one who does.
    resting: AtomicBool,
    /// Wakes the one who looks.
    event: EventFd,
}

impl Away {
    pub(super) fn new(queues: usize) -> io::Result<Self> {
        Ok(Self {
            counts: (0..queues).map(|_| AtomicU64::new(0)).collect(),
            resting: AtomicBool::new(true),
            event: EventFd::new(0)?,
        })
    }

    /// The thread of a queue leaves with a request.
    pub(super) fn leave(&self, queue: usize) {
        // In one order with `rest`: either this thread sees that nobody looks, or it is seen.
        self.counts[queue].fetch_add(1, Ordering::SeqCst);
        if self.resting.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// It is back.
    pub(super) fn back(&self, queue: usize) {
        self.counts[queue].fetch_add(1, Ordering::SeqCst);
    }

    /// Has whoever looks do so now.
    pub(super) fn wake(&self) {
        self.resting.store(false, Ordering::SeqCst);
        // Fails only when the counter is full, and then the thread is about to wake up.
        let _pending = self.event.write(1);
    }

    /// How often the thread of each queue has left and come back.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.counts.iter().map(|count| count.load(Ordering::SeqCst))
    }

    /// Whether a thread is away, of which this is the count.
    pub(super) fn is_away(count: u64) -> bool {
        count % 2 == 1
    }

    /// Says that nobody looks from here on, unless a thread is away.
    pub(super) fn rest(&self) {
        self.resting.store(true, Ordering::SeqCst);
        if self.counts().any(Self::is_away) {
            self.resting.store(false, Ordering::SeqCst);
        }
    }

    /// Whether nobody looks.
    pub(super) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::SeqCst)
    }

    /// Readable when the one who looks is woken.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }
}
