//! Who is told that something has come for which requests wait.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Arrived;

/// What a layer was given by [`BlockDevice::tell_arrivals`](crate::BlockDevice::tell_arrivals), each once, however
/// often it was given.
#[derive(Default)]
pub struct Arrivals {
    told: Mutex<Vec<Arrived>>,
}

impl Arrivals {
    /// Has one more told.
    pub fn tell(&self, arrived: Arrived) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // A stack that is taken up again, by the same device, is given the same.
        if !told.iter().any(|known| Arc::ptr_eq(known, &arrived)) {
            told.push(arrived);
        }
    }

    /// Tells all of them.
    pub fn arrive(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.clone();
        for arrived in told {
            arrived();
        }
    }
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_is_told_once_however_often_it_was_given() {
        let count = Arc::new(AtomicUsize::new(0));
        let one = || {
            let count = Arc::clone(&count);
            Arc::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }) as Arrived
        };
        let (first, second) = (one(), one());
        let arrivals = Arrivals::default();
        for arrived in [&first, &second, &first] {
            arrivals.tell(Arc::clone(arrived));
        }
        arrivals.arrive();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
