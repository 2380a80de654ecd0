//! A limit on what goes to a disk in a second.
//!
//! A request that has to wait does not wait here: it fails with [`Error::Throttled`], is parked by its device, and is
//! tried again when [`BlockDevice::tell_arrivals`] has been told. So it keeps no thread, is not in flight, and neither
//! a pause nor a pivot waits for it; a reset drops it. A flush is never held up: it covers what has ended, and what is
//! parked has not. Jobs, which have a thread of their own, wait by [`Throttle::wait`] before they ask.

pub(crate) mod bucket;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bucket::Bucket;

use super::pass_on::Layer;
use crate::arrivals::Arrivals;
use crate::{Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Result, ZeroMode};

/// What may go to a disk in a second; `None` for any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that are read or written.
    pub bytes: Option<u64>,
    /// Requests that are not flushes.
    pub requests: Option<u64>,
    /// Bytes that are written.
    pub writes: Option<u64>,
}

/// Those who wait are told at most so often: each is tried again for it, though only some get on.
const TOLD: Duration = Duration::from_millis(2);

struct State {
    bytes: Bucket,
    requests: Bucket,
    writes: Bucket,
    /// Nothing is held up any more.
    is_released: bool,
    /// A request was refused that reads, and one that changes the disk: it is to be told when such may come again.
    awaited: Awaited,
    stop: bool,
}

#[derive(Clone, Copy, Default)]
struct Awaited {
    read: bool,
    change: bool,
}

/// What a request costs.
#[derive(Clone, Copy)]
enum Cost {
    /// It reads so many bytes.
    Read(u64),
    /// It changes the disk, by so many bytes.
    Change(u64),
}

impl State {
    /// How long any request has to wait.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.is_released {
            return None;
        }
        // Of nothing and something the latter is the greater.
        self.bytes.wait(now).max(self.requests.wait(now))
    }

    fn wait_for(&mut self, cost: Cost, now: Instant) -> Option<Duration> {
        let wait = self.wait(now);
        match cost {
            Cost::Change(_) if !self.is_released => wait.max(self.writes.wait(now)),
            Cost::Change(_) | Cost::Read(_) => wait,
        }
    }

    fn take(&mut self, cost: Cost) {
        let (bytes, written) = cost.bytes();
        self.bytes.take(bytes);
        self.writes.take(written);
        self.requests.take(1);
    }

    fn give_back(&mut self, cost: Cost) {
        let (bytes, written) = cost.bytes();
        self.bytes.give_back(bytes);
        self.writes.give_back(written);
        self.requests.give_back(1);
    }
}

impl Cost {
    /// Bytes that it moves, and those of them that it writes.
    fn bytes(self) -> (u64, u64) {
        match self {
            Self::Read(bytes) => (bytes, 0),
            Self::Change(bytes) => (bytes, bytes),
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    arrivals: Arrivals,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, most: Duration) -> MutexGuard<'s, State> {
        let woken = self.changed.wait_timeout(state, most);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The life of the thread that tells when requests may come again.
    fn tell(&self) {
        let mut state = self.state();
        while !state.stop {
            let Awaited { read, change } = state.awaited;
            if !read && !change {
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // One that reads may come no later than one that writes.
            let sooner = if read { Cost::Read(0) } else { Cost::Change(0) };
            if let Some(wait) = state.wait_for(sooner, Instant::now()) {
                state = self.wait(state, wait.max(TOLD));
                continue;
            }
            state.awaited = Awaited::default();
            drop(state);
            self.arrivals.arrive();
            state = self.state();
        }
    }
}

/// A layer that lets so many requests and bytes through in a second.
pub struct Throttle {
    inner: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Limits what goes to `inner`. Starts a thread, which calls `begin` first of all.
    ///
    /// # Errors
    /// [`Error::Thread`] when it cannot be started.
    pub fn new(inner: Arc<dyn BlockDevice>, limits: Limits, begin: fn()) -> Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                bytes: Bucket::new(limits.bytes, now),
                requests: Bucket::new(limits.requests, now),
                writes: Bucket::new(limits.writes, now),
                is_released: false,
                awaited: Awaited::default(),
                stop: false,
            }),
            changed: Condvar::new(),
            arrivals: Arrivals::default(),
        });
        let telling = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("throttle".into())
            .stack_size(128 << 10)
            .spawn(move || {
                begin();
                telling.tell();
            });
        match thread {
            Ok(thread) => Ok(Self {
                inner,
                shared,
                thread: Some(thread),
            }),
            Err(source) => Err(Error::Thread {
                path: PathBuf::from(inner.identity().name),
                source,
            }),
        }
    }

    /// Changes the limits, also for what waits.
    pub fn set_limits(&self, limits: Limits) {
        let now = Instant::now();
        let mut state = self.shared.state();
        state.bytes.set_rate(limits.bytes, now);
        state.requests.set_rate(limits.requests, now);
        state.writes.set_rate(limits.writes, now);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Lets everything through from here on, and first of all what waits.
    pub fn release(&self) {
        self.shared.state().is_released = true;
        self.shared.changed.notify_all();
    }

    /// Waits until a request may come, at most so long; whether it may. It takes nothing: the request does.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            let now = Instant::now();
            let Some(wait) = state.wait(now) else {
                return true;
            };
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return false;
            }
            state = self.shared.wait(state, wait.min(left));
        }
    }

    /// Has `act` do what costs that, or says that it has to wait.
    fn pass<T>(&self, cost: Cost, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut state = self.shared.state();
        if state.wait_for(cost, Instant::now()).is_none() {
            state.take(cost);
            drop(state);
            return act().inspect_err(|error| {
                // It is tried again, and was not done.
                if error.is_for_now() {
                    self.shared.state().give_back(cost);
                }
            });
        }
        let awaited = match cost {
            Cost::Read(_) => &mut state.awaited.read,
            Cost::Change(_) => &mut state.awaited.change,
        };
        let is_first = !std::mem::replace(awaited, true);
        drop(state);
        if is_first {
            self.shared.changed.notify_all();
        }
        Err(Error::Throttled {
            path: PathBuf::from(self.inner.identity().name),
        })
    }
}

impl Layer for Throttle {
    const NAME: &'static str = "throttle";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        let cost = Cost::Read(Buffer::total_len(buffers));
        self.pass(cost, || self.inner.read(buffers, offset))
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let cost = Cost::Change(Buffer::total_len(buffers));
        self.pass(cost, || self.inner.write(buffers, offset, durability))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        // Moves no bytes.
        self.pass(Cost::Change(0), || self.inner.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.pass(Cost::Change(0), || {
            self.inner.write_zeroes(offset, len, mode)
        })
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.shared.arrivals.tell(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        // What it tells may be what held this, and drops it.
        let me = std::thread::current().id();
        if let Some(thread) = self
            .thread
            .take()
            .filter(|thread| thread.thread().id() != me)
        {
            let _panicked = thread.join();
        }
    }
}
