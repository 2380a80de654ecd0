//! What has to be undone if the guest stays at its source.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// What could not be undone.
#[derive(Clone, Default)]
pub(crate) struct Failures(Arc<Mutex<Vec<Error>>>);

impl Failures {
    /// All of them, in the order in which they came.
    pub fn take(&self) -> Vec<Error> {
        std::mem::take(&mut self.lock())
    }

    /// Undoes what cannot fail but by a panic, also while another one is on its way.
    pub fn guard(&self, undo: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(undo)).is_err() {
            self.lock().push(Error::Worker);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What would be undone of a guest whose owner is not decided: it is neither undone nor final, also if this is dropped.
pub(crate) struct Withheld<T>(ManuallyDrop<T>);

impl<T> Withheld<T> {
    pub fn new(undone: T) -> Self {
        Self(ManuallyDrop::new(undone))
    }

    pub fn get_mut(&mut self) -> &mut T {
        &mut self.0
    }

    /// It is decided.
    pub fn returned(self) -> T {
        ManuallyDrop::into_inner(self.0)
    }
}

/// One effect on the VM, its disks or the journal. Dropping it undoes the effect; what fails then is kept among the
/// failures.
pub(crate) struct Undo<'a> {
    undo: Option<Box<dyn Fn() -> Result<(), Error> + 'a>>,
    failures: Failures,
}

impl<'a> Undo<'a> {
    /// What `undo` does. Made before the effect: one that failed half-way is undone, too.
    pub fn by(failures: &Failures, undo: impl Fn() -> Result<(), Error> + 'a) -> Self {
        Self {
            undo: Some(Box::new(undo)),
            failures: failures.clone(),
        }
    }

    /// Undoes it now; what fails is tried once more when this is dropped.
    pub fn now(&mut self) -> Result<(), Error> {
        if let Some(undo) = &self.undo {
            // Also while another panic is on its way, where a second one would end the process and the guest with it.
            catch_unwind(AssertUnwindSafe(undo)).unwrap_or(Err(Error::Worker))?;
        }
        self.undo = None;
        Ok(())
    }

    /// The effect is final.
    pub fn keep(mut self) {
        self.undo = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.now() {
            self.failures.lock().push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_dropped_is_undone_once() {
        let (failures, undone) = (Failures::default(), Cell::new(0));
        let count = || {
            undone.set(undone.get() + 1);
            Ok(())
        };
        drop(Undo::by(&failures, count));
        assert_eq!(undone.get(), 1);
        let mut early = Undo::by(&failures, count);
        early.now().unwrap();
        drop(early);
        assert_eq!(undone.get(), 2);
        assert!(failures.take().is_empty());
    }

    #[test]
    fn what_is_final_or_withheld_is_not_undone() {
        let (failures, undone) = (Failures::default(), Cell::new(0));
        let effect = || {
            Undo::by(&failures, || {
                undone.set(undone.get() + 1);
                Ok(())
            })
        };
        effect().keep();
        let _ = Withheld::new(effect());
        assert_eq!(undone.get(), 0);
        drop(Withheld::new(effect()).returned());
        assert_eq!(undone.get(), 1);
    }

    #[test]
    fn an_undo_that_panics_is_a_failure() {
        let failures = Failures::default();
        drop(Undo::by(&failures, || panic!("the double was told to")));
        assert_eq!(failures.take().len(), 1);
    }

    #[test]
    fn what_fails_is_tried_again_and_told() {
        let (failures, tried) = (Failures::default(), Cell::new(0));
        let mut undo = Undo::by(&failures, || {
            tried.set(tried.get() + 1);
            Err(Error::Worker)
        });
        undo.now().unwrap_err();
        drop(undo);
        assert_eq!(tried.get(), 2);
        assert_eq!(failures.take().len(), 1);
    }
}
