//! The disks' flush beside the passes, so that stopping the guest finds little to flush.
//!
//! It has a thread of its own: storage may take its time, and neither a pass nor a reading of the dirty
//! log waits for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::session::Session;
use crate::steering::Steering;
use crate::threads::{self, ThreadKind};
use crate::vm::SourceDisks;

/// From one flush to the next while the guest is not about to be stopped.
const EVERY: Duration = Duration::from_secs(1);
/// A guest may be stopped so long after a flush ended; what it wrote since is little.
const FRESH: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    requested: bool,
    running: bool,
    over: bool,
    /// When the last one that ended had begun, and how long it took.
    last: Option<(Instant, Duration)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a flush is requested; `false` when none will be.
    fn wait_requested(&self) -> bool {
        let mut state = self.lock();
        while !state.requested && !state.over {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.running = !state.over;
        state.requested = false;
        state.running
    }

    fn ended(&self, began: Instant) {
        let mut state = self.lock();
        state.running = false;
        state.last = Some((began, began.elapsed()));
    }
}

/// The flushes of one migration; no other begins once this is dropped.
pub(super) struct Flushing<'env> {
    disks: &'env dyn SourceDisks,
    shared: Arc<Shared>,
}

impl<'env> Flushing<'env> {
    /// Starts the thread, which flushes nothing yet. A flush that fails ends the migration.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        disks: &'env dyn SourceDisks,
        session: Arc<Session>,
        steering: &'env Steering,
    ) -> Result<Self, Error>
    where
        'env: 'scope,
    {
        let shared = Arc::new(Shared::default());
        let flushing = Self {
            disks,
            shared: shared.clone(),
        };
        threads::start(scope, ThreadKind::Flush, "flushing the disks", move || {
            session.guard(|| {
                while shared.wait_requested() {
                    let began = Instant::now();
                    let flushed = disks.flush_disks();
                    shared.ended(began);
                    steering.wake();
                    if let Err(observation) = flushed {
                        return session.fail(Error::vm("flush the disks")(observation));
                    }
                }
            });
        })?;
        Ok(flushing)
    }

    /// Begins a flush, unless one is under way.
    pub fn begin(&self) {
        let mut state = self.shared.lock();
        if !state.running {
            state.requested = true;
            self.shared.changed.notify_all();
        }
    }

    /// Begins a flush if the last one was long ago and there is something to flush.
    pub fn begin_if_due(&self) {
        let last = self.shared.lock().last;
        let is_due = last.is_none_or(|(began, _)| began.elapsed() >= EVERY);
        if is_due && self.disks.has_unflushed_writes() {
            self.begin();
        }
    }

    /// Whether one is under way or about to begin.
    pub fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.running || state.requested
    }

    /// Whether the next would find little: one ended lately, or nothing was written since.
    pub fn is_fresh(&self) -> bool {
        let state = self.shared.lock();
        if state.running || state.requested {
            return false;
        }
        let ended_lately = |(began, took): (Instant, Duration)| (began + took).elapsed() <= FRESH;
        state.last.is_some_and(ended_lately) || !self.disks.has_unflushed_writes()
    }

    /// What another one is expected to take: what the last one took, and no time where nothing was written since.
    pub fn cost(&self) -> Duration {
        if !self.is_busy() && !self.disks.has_unflushed_writes() {
            return Duration::ZERO;
        }
        self.shared
            .lock()
            .last
            .map_or(Duration::ZERO, |(_, took)| took)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}
