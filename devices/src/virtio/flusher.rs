//! A flush that nobody waits for without end.
//!
//! A disk whose storage has gone away may keep a flush in the kernel for as long as it likes, and no
//! signal ends it. So the flush has a thread of its own, which is left behind when it takes too long;
//! the next flush waits for the one before, so that there is never more than one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::worker::Shared;
use crate::locked::locked;
use crate::threads::{self, Role};
use crate::{Error, Result};

/// The flush under way, if one was left behind.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    left_behind: Mutex<Option<Receiver<Result<()>>>>,
}

impl Flusher {
    /// Makes durable what was completed; gives up waiting for that after `patience`.
    pub(super) fn flush(&self, shared: &Arc<Shared>, patience: Duration) -> Result<()> {
        if shared.device.storage().is_none() {
            return shared.device.flush();
        }
        let until = Instant::now() + patience;
        let hangs = || shared.hangs(patience);
        let mut left_behind = locked(&self.left_behind);
        if let Some(earlier) = left_behind.take()
            && matches!(
                earlier.recv_timeout(patience),
                Err(RecvTimeoutError::Timeout)
            )
        {
            *left_behind = Some(earlier);
            return Err(hangs());
        }
        let (done, flushed) = channel();
        let flushing = Arc::clone(shared);
        thread::Builder::new()
            .name("flush".into())
            .stack_size(256 << 10)
            .spawn(move || {
                threads::begin(Role::Disk);
                // Nobody may be waiting any more.
                let _ = done.send(flushing.device.flush());
            })
            .map_err(|source| Error::Thread {
                device: shared.kind.name(),
                source,
            })?;
        match flushed.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            // Left behind; or it panicked, and the flush is not confirmed either.
            Err(_) => {
                *left_behind = Some(flushed);
                Err(hangs())
            }
        }
    }
}
