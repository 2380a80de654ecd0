//! Who wants the vCPUs to stand still.

use std::sync::{Mutex, PoisonError};

/// Why a machine is paused; it runs when no reason is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PauseReason {
    /// It has not been started.
    NotStarted = 1,
    /// Its user asked for it.
    User = 2,
    /// A migration is switching over, or does not know who runs the guest.
    Migration = 4,
    /// The guest is over.
    Ended = 8,
    /// Its instruction is being looked at, for a moment.
    Inspection = 16,
}

/// The reasons that hold now; transitions are made under its lock.
#[derive(Debug)]
pub struct PauseReasons(Mutex<u8>);

impl PauseReasons {
    /// A machine that was built and not started.
    pub fn new() -> Self {
        Self(Mutex::new(PauseReason::NotStarted as u8))
    }

    /// Adds a reason; `stop` is called when it is the first.
    pub fn add<E>(
        &self,
        reason: PauseReason,
        stop: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *reasons == 0;
        *reasons |= reason as u8;
        if first { stop() } else { Ok(()) }
    }

    /// Removes a reason; `start` is called when it was the last.
    pub fn remove<E>(
        &self,
        reason: PauseReason,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = *reasons & reason as u8 != 0;
        *reasons &= !(reason as u8);
        if held && *reasons == 0 {
            start()
        } else {
            Ok(())
        }
    }

    /// Whether this reason holds.
    pub fn holds(&self, reason: PauseReason) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) & reason as u8 != 0
    }
}

impl Default for PauseReasons {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn runs_only_when_the_last_reason_goes() {
        let runs = Cell::new(false);
        let reasons = PauseReasons::new();
        let start = || -> Result<(), Infallible> {
            runs.set(true);
            Ok(())
        };
        let stop = || -> Result<(), Infallible> {
            runs.set(false);
            Ok(())
        };
        reasons.remove(PauseReason::NotStarted, start).unwrap();
        assert!(runs.get());
        reasons.add(PauseReason::Migration, stop).unwrap();
        reasons.add(PauseReason::User, stop).unwrap();
        reasons.remove(PauseReason::Migration, start).unwrap();
        assert!(!runs.get());
        reasons.remove(PauseReason::Migration, start).unwrap();
        assert!(!runs.get());
        reasons.remove(PauseReason::User, start).unwrap();
        assert!(runs.get());
    }
}
