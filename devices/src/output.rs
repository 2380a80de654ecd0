//! Console output on its way out: gathered, so that a byte costs no system call, and never waited for.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::locked::locked;
use crate::threads::{self, ThreadKind};
use crate::{Error, Result};

/// A line that does not end is written after this time, so that a prompt appears.
const LINGER: Duration = Duration::from_millis(4);
/// As much is written without waiting for more.
const ENOUGH: usize = 4096;
/// Most that is kept for a reader who does not read; what exceeds it is lost, because a guest (and its
/// migration) must not stand still for a blocked terminal.
const MOST: usize = 1 << 20;
/// How long the end of a device waits for its output to be written.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Do not wait for more.
    urgent: bool,
    /// The thread has taken bytes that are not written yet.
    writing: bool,
    stop: bool,
    ended: bool,
    lost: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The end of the guest's console output that the devices write to.
#[derive(Debug)]
pub(crate) struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A handle that writes to an [`Output`].
#[derive(Debug, Clone)]
pub(crate) struct OutputHandle(Arc<Shared>);

impl Output {
    pub(crate) fn new(device: &'static str, out: Box<dyn Write + Send>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name(format!("{device}-out"))
            .stack_size(128 << 10)
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    threads::begin(ThreadKind::Helper);
                    shared.run(device, out);
                }
            })
            .map_err(|source| Error::Thread { device, source })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn handle(&self) -> OutputHandle {
        OutputHandle(Arc::clone(&self.shared))
    }

    /// As [`OutputHandle::drain`].
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        self.handle().drain(timeout)
    }
}

impl OutputHandle {
    /// Waits until everything is written, at most until `timeout` has passed.
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = locked(&self.0.state);
        state.urgent = true;
        self.0.changed.notify_all();
        while !state.ended && (state.writing || !state.pending.is_empty()) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Takes bytes; never blocks on the reader.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = locked(&self.0.state);
        let room = MOST - state.pending.len();
        let taken = &bytes[..bytes.len().min(room)];
        state.lost += (bytes.len() - taken.len()) as u64;
        let was_empty = state.pending.is_empty();
        state.pending.extend_from_slice(taken);
        let urgent = !state.urgent && (taken.contains(&b'\n') || state.pending.len() >= ENOUGH);
        state.urgent |= urgent;
        drop(state);
        if was_empty || urgent {
            self.0.changed.notify_all();
        }
    }
}

impl Shared {
    fn run(&self, device: &'static str, mut out: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        let mut failed = false;
        while let Some(lost) = self.take(&mut batch) {
            if lost > 0 {
                tracing::warn!(device, lost, "console output lost: nobody reads it");
            }
            let written = out.write_all(&batch).and_then(|()| out.flush());
            match written {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(device, %error, "console output cannot be written");
                }
                Err(_) => {}
            }
            batch.clear();
            let mut state = locked(&self.state);
            state.writing = false;
            drop(state);
            self.changed.notify_all();
        }
        locked(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Waits for a batch worth writing, and the count of bytes lost before it; `None` at the end.
    fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut state = locked(&self.state);
        while state.pending.is_empty() {
            if state.stop {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let deadline = Instant::now() + LINGER;
        while !state.urgent && !state.stop {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::swap(&mut state.pending, batch);
        state.urgent = false;
        state.writing = true;
        Some(std::mem::take(&mut state.lost))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        locked(&self.shared.state).stop = true;
        // A writer that blocks for ever keeps its thread, but not us.
        if self.drain(FAREWELL) {
            self.shared.changed.notify_all();
            if let Some(thread) = self.thread.take() {
                let _panicked = thread.join();
            }
        }
    }
}
