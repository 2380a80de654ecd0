//! Connections that are not made before the guest is here that needs what they bring.
//!
//! The threads that make them are there before: once the guest runs, a host that has no room for a thread must not be its end.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration::transport::{Connect, Connection, Patience};

/// How often it is looked whether a connection is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Whether connections are made.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// They are from here on.
    pub(crate) fn open(&self) {
        *self.is_open() = true;
        self.opened.notify_all();
    }
}

/// Makes connections as `inner` does, once the gate is open.
pub(crate) struct Gated<C> {
    pub(crate) inner: C,
    pub(crate) gate: Arc<Gate>,
}

impl<C: Connect> Connect for Gated<C> {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        let mut is_open = self.gate.is_open();
        while !*is_open {
            if (patience.give_up)() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let woken = self.gate.opened.wait_timeout(is_open, LOOK);
            is_open = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(is_open);
        self.inner.connect(patience)
    }

    fn address(&self) -> String {
        self.inner.address()
    }

    fn is_within_host(&self) -> bool {
        self.inner.is_within_host()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Connect for Counted {
        fn connect(&self, _: Patience<'_>) -> io::Result<Box<dyn Connection>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::ConnectionRefused.into())
        }

        fn address(&self) -> String {
            "nowhere".into()
        }
    }

    #[test]
    fn nobody_is_connected_to_before_the_gate_is_open() {
        let gate = Arc::<Gate>::default();
        let gated = Gated {
            inner: Counted::default(),
            gate: gate.clone(),
        };
        let connect = |give_up: bool| {
            let patience = Patience {
                timeout: Duration::from_secs(60),
                give_up: &|| give_up,
            };
            gated.connect(patience).err().map(|e| e.kind())
        };
        assert_eq!(connect(true), Some(io::ErrorKind::Interrupted));
        assert_eq!(gated.inner.0.load(Ordering::SeqCst), 0);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| connect(false));
            gate.open();
            let refused = waits.join().unwrap();
            assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
        });
        assert_eq!(gated.inner.0.load(Ordering::SeqCst), 1);
    }
}
