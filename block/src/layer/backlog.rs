//! A bound on what a disk's user has changed and whoever follows it has not carried away yet.
//!
//! Over a tracker, whose marks say *what* is to be carried away; this layer says *how much* that may be. A change that would go
//! beyond the bound does not wait here: it fails with [`Error::Throttled`], is parked by its device, and is tried again once
//! something was carried away. So it is not in flight, and neither a pause nor a pivot waits for it. What is counted is blocks
//! of the tracker that are marked for the first time since its marks were last taken; changes that are under way then may be
//! counted late, which the bound may be missed by: it steers, and nothing is lost by it.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pass_on::Layer;
use super::tracker::{BLOCK, ChangeMap};
use crate::arrivals::Arrivals;
use crate::{Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Result, ZeroMode};

#[derive(Default)]
struct State {
    /// Bytes of blocks that changes were let in for, and how many of these were carried away.
    let_in: u64,
    carried: u64,
    most: Option<u64>,
    /// Since when somebody waits while nothing is carried away.
    waits_since: Option<Instant>,
}

impl State {
    fn is_full(&self) -> bool {
        let backlog = self.let_in.saturating_sub(self.carried);
        self.most.is_some_and(|most| backlog > most)
    }

    /// Whether those who wait may come again.
    fn take_awaited(&mut self) -> bool {
        !self.is_full() && self.waits_since.take().is_some()
    }
}

/// A layer that holds changes up while too much of what was changed waits to be carried away.
pub struct Backlog {
    inner: Arc<dyn BlockDevice>,
    marks: Arc<ChangeMap>,
    state: Mutex<State>,
    arrivals: Arrivals,
}

impl Backlog {
    /// Over `inner`, which marks changes in `marks`. Nothing is held up yet.
    pub fn new(inner: Arc<dyn BlockDevice>, marks: Arc<ChangeMap>) -> Self {
        Self {
            inner,
            marks,
            state: Mutex::default(),
            arrivals: Arrivals::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, act: impl FnOnce(&mut State)) {
        let mut state = self.state();
        act(&mut state);
        let told = state.take_awaited();
        drop(state);
        if told {
            self.arrivals.arrive();
        }
    }

    /// Has changes wait while more than `most` bytes are to be carried away; with `None` they never wait.
    pub fn bound(&self, most: Option<u64>) {
        self.update(|state| state.most = most);
    }

    /// Bytes of blocks that changes were let in for: a count that only grows. Asked before marks are taken.
    pub fn let_in(&self) -> u64 {
        self.state().let_in
    }

    /// What was let in when the count was `let_in` is carried away.
    pub fn carried(&self, let_in: u64) {
        self.update(|state| {
            if let_in > state.carried {
                state.carried = let_in;
                // Whoever waits on waits for the next.
                state.waits_since = state.waits_since.map(|_| Instant::now());
            }
        });
    }

    /// For how long changes have waited while nothing was carried away.
    pub fn waits_for(&self) -> Option<Duration> {
        self.state().waits_since.map(|since| since.elapsed())
    }

    /// Lets a change in, or says that it has to wait.
    fn enter(&self, offset: u64, len: u64) -> Result<()> {
        let now = self.marks.generation();
        let end = offset.saturating_add(len).min(self.marks.size());
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        let fresh = blocks.filter(|block| !self.marks.has_changed(block * BLOCK, now));
        let bytes = fresh.count() as u64 * BLOCK;
        let mut state = self.state();
        if bytes > 0 && state.is_full() {
            state.waits_since.get_or_insert_with(Instant::now);
            drop(state);
            return Err(Error::Throttled {
                path: PathBuf::from(self.inner.identity().name),
            });
        }
        state.let_in += bytes;
        Ok(())
    }
}

impl Layer for Backlog {
    const NAME: &'static str = "backlog";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.enter(offset, Buffer::total_len(buffers))?;
        self.inner.write(buffers, offset, durability)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.enter(offset, len)?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.enter(offset, len)?;
        self.inner.write_zeroes(offset, len, mode)
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.arrivals.tell(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog").finish_non_exhaustive()
    }
}
