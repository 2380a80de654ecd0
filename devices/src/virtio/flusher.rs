//! A flush that nobody waits for without end.
//!
//! A disk whose storage has gone away may keep a flush in the kernel for as long as it likes, and no
//! signal ends it. So the flush has a thread of its own, which is left behind when it takes too long;
//! the next flush waits for the one before, so that there is never more than one.

use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use block::Backend;

use super::awaited::Awaited;
use super::shared::Shared;
use crate::locked::locked;
use crate::threads::{self, ThreadKind};
use crate::{Error, Result};

/// Whether a flush is under way, perhaps one that was left behind.
#[derive(Debug, Default)]
struct UnderWay {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl UnderWay {
    /// Waits for the flush before, at most until `deadline`: the right to the next one.
    fn take(this: &Arc<Self>, deadline: Instant) -> Option<Turn> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut flag, _) = this
            .changed
            .wait_timeout_while(locked(&this.flag), left, |flag| *flag)
            .unwrap_or_else(PoisonError::into_inner);
        if *flag {
            return None;
        }
        *flag = true;
        Some(Turn(Arc::clone(this)))
    }
}

/// The right to flush, given up when it is dropped; also when the flush panics.
struct Turn(Arc<UnderWay>);

impl Drop for Turn {
    fn drop(&mut self) {
        *locked(&self.0.flag) = false;
        self.0.changed.notify_all();
    }
}

/// Flushes the storage behind a device, one flush at a time.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    under_way: Arc<UnderWay>,
}

impl Flusher {
    /// Makes durable what was completed; gives up waiting for that after `left`, as the last part of the
    /// `patience` that is told then.
    pub(super) fn flush(
        &self,
        shared: &Arc<Shared>,
        left: Duration,
        patience: Duration,
    ) -> Result<()> {
        if shared.device.storage().is_none() {
            return shared.device.flush();
        }
        let flushing = Arc::clone(shared);
        self.run(shared, left, patience, move || flushing.device.flush())
    }

    /// Makes durable what a backend has completed, which is not that of the device yet; as [`Flusher::flush`].
    pub(super) fn flush_backend(
        &self,
        shared: &Shared,
        backend: Arc<dyn Backend>,
        left: Duration,
        patience: Duration,
    ) -> Result<()> {
        if !backend.disk().has_unflushed_writes() {
            return Ok(());
        }
        self.run(shared, left, patience, move || {
            let disk = backend.disk();
            disk.flush().map_err(|source| Error::Flush {
                disk: disk.identity().to_string(),
                source,
            })
        })
    }

    /// Has a thread flush, when the flush before has ended.
    fn run(
        &self,
        shared: &Shared,
        left: Duration,
        patience: Duration,
        flush: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let deadline = Instant::now() + left;
        let hangs = || shared.hangs(Awaited::Flush, patience);
        let turn = UnderWay::take(&self.under_way, deadline).ok_or_else(hangs)?;
        let (done, flushed) = channel();
        thread::Builder::new()
            .name("flush".into())
            .stack_size(256 << 10)
            .spawn(move || {
                threads::begin(ThreadKind::Disk);
                let result = flush();
                drop(turn);
                // Nobody may be waiting any more.
                let _ = done.send(result);
            })
            .map_err(|source| Error::Thread {
                device: shared.kind.name(),
                source,
            })?;
        // Left behind; or it panicked, and the flush is not confirmed either.
        flushed
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .unwrap_or_else(|_| Err(hangs()))
    }
}
