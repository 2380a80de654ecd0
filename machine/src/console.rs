//! The guest's serial console: its log, its viewers and their keys.
//!
//! The vCPU that prints only appends to a bounded buffer; one thread carries the bytes on. A viewer
//! that does not read is dropped once its own buffer is full, and output that nobody takes away fast
//! enough is counted and left out, so nothing outside can hold up the guest. Keys are never left out:
//! those that the guest does not take yet stay with who typed them.

mod carrier;
mod shared;
mod viewer;

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use control::rotating_file::RotatingFile;
use rustix::event::{EventfdFlags, eventfd};

use crate::threads::{self, ThreadKind};
use carrier::Carrier;
pub use shared::{ConsoleOutputs, Input};
use shared::{PENDING_LIMIT, Shared, State};

/// Keys of this terminal that wait for the guest; beyond that nothing is read from it.
const TYPED_LIMIT: usize = 1 << 20;
/// Bytes of `serial.log` before it is rotated.
pub const SERIAL_LOG_LIMIT: u64 = 8 << 20;

/// Carries the guest's output to its log and viewers, and their keys to the guest. Clones share one
/// console.
#[derive(Clone)]
pub struct ConsoleHub {
    shared: Arc<Shared>,
}

impl ConsoleHub {
    /// Starts the console's thread.
    ///
    /// # Errors
    /// What the kernel says about the wake-up event, the socket or the thread.
    pub fn start(outputs: ConsoleOutputs) -> io::Result<Self> {
        if let Some(listener) = &outputs.listener {
            listener.set_nonblocking(true)?;
        }
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            drained: Condvar::new(),
            typed_room: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            input: Mutex::default(),
        });
        let mut carrier = Carrier::new(Arc::clone(&shared), outputs);
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || {
                threads::begin(ThreadKind::Console);
                carrier.run();
            })?;
        Ok(Self { shared })
    }

    /// Sets what takes keys to the guest; keys that come before are lost.
    pub fn set_input(&self, input: Input) {
        *self
            .shared
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(input));
    }

    /// Tells that the guest has room for keys that it did not take.
    pub fn room_notifier(&self) -> Arc<dyn Fn() + Send + Sync> {
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.wake();
            }
        })
    }

    /// Gives keys of this terminal to the guest; waits while too many wait for it already.
    pub fn send_input(&self, keys: &[u8]) {
        let mut left = keys;
        while !left.is_empty() {
            let full = |state: &mut State| state.typed.len() >= TYPED_LIMIT && !state.closed;
            let mut state = self
                .shared
                .typed_room
                .wait_while(self.shared.state(), full)
                .unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            let taken = left.len().min(TYPED_LIMIT - state.typed.len());
            state.typed.extend(&left[..taken]);
            left = &left[taken..];
            drop(state);
            self.shared.wake();
        }
    }

    /// Goes on with another log, as when the one before was moved away.
    pub fn set_log(&self, log: RotatingFile) {
        self.shared.state().log = Some(log);
        self.shared.wake();
    }

    /// Takes what the guest prints; never blocks and never fails.
    pub fn write(&self, bytes: &[u8]) {
        let wake = {
            let mut state = self.shared.state();
            let room = PENDING_LIMIT - state.pending.len();
            let taken = bytes.len().min(room);
            state.pending.extend(&bytes[..taken]);
            state.dropped += (bytes.len() - taken) as u64;
            !std::mem::replace(&mut state.woken, true)
        };
        if wake {
            self.shared.wake();
        }
    }

    /// A writer for the serial device.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(ConsoleWriter(self.clone()))
    }

    /// Waits until all that was printed is in the log and on standard output, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        self.shared.wake();
        let state = self.shared.state();
        let _ = self.shared.drained.wait_timeout_while(state, timeout, |s| {
            (!s.pending.is_empty() || s.busy) && !s.closed
        });
    }

    /// Ends the console's thread and drops its viewers.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.typed_room.notify_all();
        self.shared.wake();
    }
}

struct ConsoleWriter(ConsoleHub);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
