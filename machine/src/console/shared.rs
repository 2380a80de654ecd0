//! What the console's hub and the thread that carries its bytes share.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use control::rotating_file::RotatingFile;

/// Bytes that wait for the console thread.
pub(super) const PENDING_LIMIT: usize = 1 << 20;

/// Takes keys to the guest: how many of them were taken. The rest is offered again, once
/// [`ConsoleHub::room_notifier`](super::ConsoleHub::room_notifier) has told that there is room.
pub type Input = Box<dyn Fn(&[u8]) -> usize + Send + Sync>;

#[derive(Default)]
pub(super) struct State {
    pub(super) pending: VecDeque<u8>,
    pub(super) dropped: u64,
    pub(super) woken: bool,
    /// The thread carries bytes that are no longer in `pending`.
    pub(super) busy: bool,
    pub(super) closed: bool,
    /// Keys of this terminal.
    pub(super) typed: VecDeque<u8>,
    /// The log that takes the place of the one before.
    pub(super) log: Option<RotatingFile>,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) drained: Condvar,
    /// There is room for more keys of this terminal, or nobody takes them any more.
    pub(super) typed_room: Condvar,
    pub(super) wake: OwnedFd,
    pub(super) input: Mutex<Option<Arc<Input>>>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers keys to the guest: how many it took. All where there is no guest: they are lost.
    pub(super) fn offer(&self, keys: &[u8]) -> usize {
        let input = self
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        input.map_or(keys.len(), |input| input(keys).min(keys.len()))
    }

    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Where the guest's output goes.
#[derive(Default)]
pub struct ConsoleOutputs {
    /// Log of everything that the guest prints.
    pub log: Option<RotatingFile>,
    /// Socket on which viewers attach.
    pub listener: Option<UnixListener>,
    /// Also print to this, the process's standard output.
    pub stdout: Option<OwnedFd>,
}
