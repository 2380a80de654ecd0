//! A rate to which a guest's writes to a disk are limited while that is mirrored, so that what it holds goes on beside them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use block::Stack;
use block::throttle::{Limits, Throttle};

use crate::threads::{self, ThreadKind};

#[derive(Debug, Default)]
struct State {
    /// Bytes a second.
    rate: Option<u64>,
    /// What keeps to it, once something does.
    throttle: Weak<Throttle>,
}

/// The rate of one disk, which may be changed before, while and after it is in force.
#[derive(Debug, Default)]
pub(crate) struct WriteLimit(Mutex<State>);

fn limits(rate: Option<u64>) -> Limits {
    Limits {
        writes: rate,
        ..Limits::default()
    }
}

impl WriteLimit {
    /// So many bytes a second; `None` is any number.
    pub(crate) fn of(rate: Option<u64>) -> Self {
        Self(Mutex::new(State {
            rate,
            throttle: Weak::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a second, where there is a limit.
    pub(crate) fn rate(&self) -> Option<u64> {
        self.state().rate
    }

    /// Changes it, also for writes that wait.
    pub(crate) fn set(&self, rate: Option<u64>) {
        let mut state = self.state();
        if state.rate == rate {
            return;
        }
        state.rate = rate;
        if let Some(throttle) = state.throttle.upgrade() {
            throttle.set_limits(limits(rate));
        }
    }

    /// Lays what keeps to it over `stack`; it is in force as long as that is used.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub(crate) fn lay(&self, stack: &mut Stack) -> block::Result<()> {
        let mut state = self.state();
        let limits = limits(state.rate);
        let begin = || threads::begin(ThreadKind::Disk);
        let throttle = stack.try_lay(|below| Throttle::new(below, limits, begin))?;
        state.throttle = Arc::downgrade(&throttle);
        Ok(())
    }
}
