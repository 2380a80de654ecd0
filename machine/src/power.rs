//! Who wants the vCPUs to stand still.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// The reasons that hold now.
///
/// Transitions are made one after the other, so that whoever adds a reason to a machine that is just
/// being stopped also waits until it stands. Asking never waits: a disk that takes long to flush must
/// not silence the status.
#[derive(Debug)]
pub struct PauseReasons {
    bits: AtomicU8,
    transition: Mutex<()>,
}

impl PauseReasons {
    /// A machine that was built and not started.
    pub fn new() -> Self {
        Self {
            bits: AtomicU8::new(PauseReason::NotStarted as u8),
            transition: Mutex::new(()),
        }
    }

    /// Adds a reason; `stop` is called also when it is not the first, for the one before may have
    /// found a device that did not stand still.
    pub fn add<E>(
        &self,
        reason: PauseReason,
        stop: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let transition = self.lock();
        self.added(&transition, reason, stop)
    }

    /// Removes a reason; `start` is called when it was the last. If that fails the reason stays.
    pub fn remove<E>(
        &self,
        reason: PauseReason,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let transition = self.lock();
        self.removed(&transition, reason, start)
    }

    /// If `reason` holds, `by` holds in its place: who has stopped the machine has left it stopped.
    pub fn replace(&self, reason: PauseReason, by: PauseReason) {
        let _transition = self.lock();
        if self.contains(reason) {
            self.bits.fetch_or(by as u8, Ordering::SeqCst);
            self.bits.fetch_and(!(reason as u8), Ordering::SeqCst);
        }
    }

    /// As [`PauseReasons::add`], but nothing is done while `other` holds: whether it was added.
    pub fn add_unless<E>(
        &self,
        other: PauseReason,
        reason: PauseReason,
        stop: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let transition = self.lock();
        if self.contains(other) {
            return Ok(false);
        }
        self.added(&transition, reason, stop).map(|()| true)
    }

    /// As [`PauseReasons::remove`], but nothing is done while `other` holds: whether it was removed.
    pub fn remove_unless<E>(
        &self,
        other: PauseReason,
        reason: PauseReason,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let transition = self.lock();
        if self.contains(other) {
            return Ok(false);
        }
        self.removed(&transition, reason, start).map(|()| true)
    }

    /// Does `work`, for which the machine is stopped, while nobody else stops or starts it; then calls
    /// `start`, unless a reason holds.
    pub fn between_transitions<T>(&self, work: impl FnOnce() -> T, start: impl FnOnce()) -> T {
        let _transition = self.lock();
        let done = work();
        if self.bits.load(Ordering::SeqCst) == 0 {
            start();
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.transition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn added<E>(
        &self,
        _transition: &MutexGuard<'_, ()>,
        reason: PauseReason,
        stop: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.bits.fetch_or(reason as u8, Ordering::SeqCst);
        stop()
    }

    fn removed<E>(
        &self,
        _transition: &MutexGuard<'_, ()>,
        reason: PauseReason,
        start: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.bits.fetch_and(!(reason as u8), Ordering::SeqCst);
        if before != reason as u8 {
            return Ok(());
        }
        // Whatever did not start stands still, for this reason still, so that it can be tried again.
        start().inspect_err(|_| {
            self.bits.fetch_or(reason as u8, Ordering::SeqCst);
        })
    }

    /// Whether it is paused for this reason; it may be about to be.
    pub fn contains(&self, reason: PauseReason) -> bool {
        self.bits.load(Ordering::SeqCst) & reason as u8 != 0
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

    #[test]
    fn a_start_that_fails_can_be_tried_again() {
        let reasons = PauseReasons::new();
        let starts = Cell::new(0);
        let start = || {
            starts.set(starts.get() + 1);
            if starts.get() < 3 { Err(()) } else { Ok(()) }
        };
        for _ in 0..2 {
            reasons.remove(PauseReason::NotStarted, start).unwrap_err();
            assert!(reasons.contains(PauseReason::NotStarted));
        }
        reasons.remove(PauseReason::NotStarted, start).unwrap();
        assert!(!reasons.contains(PauseReason::NotStarted));
        assert_eq!(starts.get(), 3);
    }

    #[test]
    fn what_a_migration_could_not_start_again_its_user_can() {
        let reasons = PauseReasons::new();
        let none = || -> Result<(), Infallible> { Ok(()) };
        let (migration, user) = (PauseReason::Migration, PauseReason::User);
        reasons.remove(PauseReason::NotStarted, none).unwrap();
        reasons.replace(migration, user);
        assert!(!reasons.contains(user));
        reasons.add(migration, none).unwrap();
        reasons.remove(migration, || Err(())).unwrap_err();
        reasons.replace(migration, user);
        assert!(reasons.remove_unless(migration, user, none).unwrap());
        assert!(!reasons.contains(user) && !reasons.contains(migration));
    }

    #[test]
    fn what_is_done_between_transitions_wakes_no_machine_that_has_a_reason_to_stand() {
        let starts = Cell::new(0);
        let reasons = PauseReasons::new();
        let none = || -> Result<(), Infallible> { Ok(()) };
        let work = || reasons.between_transitions(|| (), || starts.set(starts.get() + 1));
        work();
        assert_eq!(starts.get(), 0);
        reasons.remove(PauseReason::NotStarted, none).unwrap();
        work();
        assert_eq!(starts.get(), 1);
        reasons.add(PauseReason::User, none).unwrap();
        work();
        assert_eq!(starts.get(), 1);
    }

    #[test]
    fn asking_does_not_wait_for_a_stop_that_takes_long() {
        let reasons = PauseReasons::new();
        let none = || -> Result<(), Infallible> { Ok(()) };
        reasons.remove(PauseReason::NotStarted, none).unwrap();
        reasons
            .add(PauseReason::User, || {
                assert!(reasons.contains(PauseReason::User));
                assert!(!reasons.contains(PauseReason::Migration));
                none()
            })
            .unwrap();
    }

    #[test]
    fn a_user_changes_nothing_while_a_migration_holds_the_machine() {
        let reasons = PauseReasons::new();
        let none = || -> Result<(), Infallible> { Ok(()) };
        let (held, user) = (PauseReason::Migration, PauseReason::User);
        reasons.remove(PauseReason::NotStarted, none).unwrap();
        assert!(reasons.add_unless(held, user, none).unwrap());
        reasons.add(held, none).unwrap();
        assert!(!reasons.remove_unless(held, user, none).unwrap());
        assert!(reasons.contains(user));
        reasons.remove(held, none).unwrap();
        assert!(reasons.remove_unless(held, user, none).unwrap());
        reasons.add(held, none).unwrap();
        assert!(!reasons.add_unless(held, user, none).unwrap());
        assert!(!reasons.contains(user));
    }
}
