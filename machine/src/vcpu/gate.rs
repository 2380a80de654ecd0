//! The gate that all vCPU threads pass before they enter the guest.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the vCPU threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// Run the guest.
    Running,
    /// Park.
    Paused,
    /// End the thread.
    Quit,
}

/// Mode of the vCPUs, and how many have parked.
///
/// `mode` is read without a lock on each entry into the guest; it is written only under `parked`'s
/// lock, so that a waiter cannot miss a change.
pub(super) struct Gate {
    mode: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            mode: AtomicU8::new(Mode::Paused as u8),
            parked: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.mode.load(Ordering::SeqCst) == Mode::Running as u8
    }

    pub(super) fn open(&self) {
        self.set(Mode::Running);
    }

    pub(super) fn close(&self, mode: Mode) {
        self.set(mode);
    }

    /// Parks the calling vCPU thread until the gate opens; `Quit` when the thread is to end.
    pub(super) fn park(&self) -> Mode {
        let mut parked = self.lock();
        *parked += 1;
        self.changed.notify_all();
        let mode = loop {
            match self.mode.load(Ordering::SeqCst) {
                m if m == Mode::Paused as u8 => {
                    parked = self
                        .changed
                        .wait(parked)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                m if m == Mode::Running as u8 => break Mode::Running,
                _ => break Mode::Quit,
            }
        };
        *parked -= 1;
        mode
    }

    /// Blocks until `count` vCPUs have parked.
    pub(super) fn wait_parked(&self, count: usize) {
        let mut parked = self.lock();
        while *parked < count {
            parked = self
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// `Quit` is final: a vCPU that stops everybody because its guest is over may come after it, and
    /// would keep the threads that are to end.
    fn set(&self, mode: Mode) {
        let _parked = self.lock();
        if self.mode.load(Ordering::SeqCst) != Mode::Quit as u8 {
            self.mode.store(mode as u8, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_opens_or_closes_a_gate_that_was_quit() {
        let gate = Gate::new();
        gate.close(Mode::Quit);
        gate.close(Mode::Paused);
        assert_eq!(gate.park(), Mode::Quit);
        gate.open();
        assert_eq!(gate.park(), Mode::Quit);
    }
}
