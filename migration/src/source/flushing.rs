//! The disks' flush beside the passes, so that stopping the guest finds little to flush.
//!
//! It has a thread of its own: storage may take its time, and neither a pass nor a reading of the dirty
//! log waits for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::error::Error;
use crate::session::Session;
use crate::threads::{self, Role};
use crate::vm::SourceDisks;

/// From one flush to the next while the guest is not about to be stopped.
const EVERY: Duration = Duration::from_secs(1);
/// A guest may be stopped so long after a flush ended; what it wrote since is little.
const FRESH: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    wanted: bool,
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

    /// Waits until a flush is wanted; `false` when none will be.
    fn wait_wanted(&self) -> bool {
        let mut state = self.lock();
        while !state.wanted && !state.over {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.running = !state.over;
        state.wanted = false;
        state.running
    }

    fn ended(&self, began: Instant) {
        let mut state = self.lock();
        state.running = false;
        state.last = Some((began, began.elapsed()));
    }
}

/// The flushes of one migration; no other begins once this is dropped.
pub(super) struct Flushing(Arc<Shared>);

impl Flushing {
    /// Starts the thread, which flushes nothing yet. A flush that fails ends the migration.
    pub fn start<'scope, 'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        disks: &'env dyn SourceDisks,
        session: &'env Session,
        control: &'env Control,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let flushing = Self(shared.clone());
        threads::start(scope, Role::Flush, "flushing the disks", move || {
            session.guard(|| {
                while shared.wait_wanted() {
                    let began = Instant::now();
                    let flushed = disks.flush_disks();
                    shared.ended(began);
                    control.wake();
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
        let mut state = self.0.lock();
        if !state.running {
            state.wanted = true;
            self.0.changed.notify_all();
        }
    }

    /// Begins a flush if the last one was long ago.
    pub fn begin_if_due(&self) {
        let last = self.0.lock().last;
        if last.is_none_or(|(began, _)| began.elapsed() >= EVERY) {
            self.begin();
        }
    }

    /// Whether one is under way or about to begin.
    pub fn is_busy(&self) -> bool {
        let state = self.0.lock();
        state.running || state.wanted
    }

    /// Whether one ended so lately that the next will take no longer.
    pub fn is_fresh(&self) -> bool {
        let state = self.0.lock();
        let last = state.last;
        !state.running && last.is_some_and(|(began, took)| (began + took).elapsed() <= FRESH)
    }

    /// What another one is expected to take: what the last one took.
    pub fn cost(&self) -> Duration {
        self.0.lock().last.map_or(Duration::ZERO, |(_, took)| took)
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}
