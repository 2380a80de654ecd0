//! A layer that sees to which stack requests belong.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use block::{BlockDevice, Buffer, Discarded, Durability, Layer, ZeroMode};

/// Which stack has requests, and what went wrong if anything did.
#[derive(Default)]
pub struct Turns {
    /// The number of the stack that has requests, and how many.
    now: Mutex<(usize, usize)>,
    is_broken: AtomicBool,
}

/// The top of a stack, which sees that requests belong to one stack at a time, and to none again that another has
/// taken the place of. Flushes are left out: a device that is paused flushes both, and is asked by nobody for it.
pub struct Witness {
    inner: Arc<dyn BlockDevice>,
    /// Of the stack, in the order of their first requests; 0 before.
    number: AtomicUsize,
    turns: Arc<Turns>,
}

impl Turns {
    /// Whether no two stacks had requests at once, and none had any after another.
    pub fn are_kept(&self) -> bool {
        !self.is_broken.load(Ordering::SeqCst)
    }
}

struct Turn<'w>(&'w Witness);

impl Witness {
    pub fn new(inner: Arc<dyn BlockDevice>, turns: Arc<Turns>) -> Self {
        Self {
            inner,
            number: AtomicUsize::new(0),
            turns,
        }
    }

    fn enter(&self) -> Turn<'_> {
        let (current, in_flight) = &mut *self.turns.now.lock().unwrap();
        let number = match self.number.load(Ordering::SeqCst) {
            0 => {
                self.turns
                    .is_broken
                    .fetch_or(*in_flight > 0, Ordering::SeqCst);
                *current += 1;
                self.number.store(*current, Ordering::SeqCst);
                *current
            }
            number => number,
        };
        self.turns
            .is_broken
            .fetch_or(number != *current, Ordering::SeqCst);
        *in_flight += 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.now.lock().unwrap().1 -= 1;
    }
}

impl Layer for Witness {
    const NAME: &'static str = "witness";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> block::Result<()> {
        let _turn = self.enter();
        self.inner.read(buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, how: Durability) -> block::Result<()> {
        let _turn = self.enter();
        self.inner.write(buffers, offset, how)
    }

    fn discard(&self, offset: u64, len: u64) -> block::Result<Discarded> {
        let _turn = self.enter();
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> block::Result<()> {
        let _turn = self.enter();
        self.inner.write_zeroes(offset, len, mode)
    }
}
