//! Pausing devices, all of them in the time that one has, and letting them go on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::transport::MmioTransport;
use crate::locked::locked;
use crate::{Error, Result};

/// How long devices that are being paused may take to end their requests, and again to flush: the guest
/// stands still meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a flush may take while the guest runs.
const FLUSH_PATIENCE: Duration = Duration::from_secs(20);

/// Pauses each of `transports` as [`MmioTransport::pause`] does, but flushes nothing; they have `patience` together to
/// end their requests. What came of each, in their order.
pub fn drain_within(transports: &[&MmioTransport], patience: Duration) -> Vec<Result<()>> {
    for transport in transports {
        transport.close();
    }
    let deadline = Instant::now() + patience;
    let drained = transports
        .iter()
        .map(|transport| transport.drain(deadline, patience));
    drained.collect()
}

/// Makes durable what each of `transports` has completed, in `patience` for all of them; what came of each, in their
/// order.
pub fn flush_within(transports: &[&MmioTransport], patience: Duration) -> Vec<Result<()>> {
    let deadline = Instant::now() + patience;
    let flushed = transports
        .iter()
        .map(|transport| transport.flush_by(deadline, patience));
    flushed.collect()
}

/// As [`drain_within`], and then [`flush_within`] in as much time again of those that stand still.
pub fn pause_within(transports: &[&MmioTransport], patience: Duration) -> Vec<Result<()>> {
    let drained = drain_within(transports, patience);
    let deadline = Instant::now() + patience;
    let flushes = transports.iter().zip(drained);
    flushes
        .map(|(transport, drained)| drained.and_then(|()| transport.flush_by(deadline, patience)))
        .collect()
}

impl MmioTransport {
    /// Finishes the requests in flight, stops the queues' threads, and flushes what is behind the
    /// device. A reset that waits for these requests is done then. Requests that are parked stay so.
    /// Idempotent; vCPUs are stopped before.
    ///
    /// # Errors
    /// When the flush is not confirmed; the device is paused all the same. When a request does not end
    /// in time: the device takes no other, and [`MmioTransport::resume`] lets it go on.
    pub fn pause(&self) -> Result<()> {
        pause_within(&[self], PATIENCE).into_iter().collect()
    }

    /// Makes durable what was completed, while the device runs, so that [`MmioTransport::pause`] finds
    /// less to do.
    ///
    /// # Errors
    /// When the flush is not confirmed, or not in time.
    pub fn flush(&self) -> Result<()> {
        self.flusher
            .flush(&self.shared, FLUSH_PATIENCE, FLUSH_PATIENCE)
    }

    /// Whether a flush may have anything to do.
    pub fn has_unflushed_writes(&self) -> bool {
        self.shared.device.has_unflushed_writes()
    }

    /// Lets the device go on where it was paused, or where the saved one was. Idempotent.
    ///
    /// # Errors
    /// When the device cannot go on, and stays paused; or when a pending interrupt cannot be raised,
    /// and the device runs all the same.
    pub fn resume(&self) -> Result<()> {
        let mut paused = locked(&self.paused);
        if !*paused {
            return Ok(());
        }
        self.shared.device.go_on()?;
        *paused = false;
        self.shared.gate.open();
        // A notification may have been taken before the pause, or at the other host, without its
        // request; and an edge may have gone to an interrupt controller that was already saved. What
        // requests are parked for may have come meanwhile, or be here.
        self.shared.retry_parked();
        if self.shared.interrupt_status.load(Ordering::SeqCst) != 0 {
            self.shared
                .interrupt
                .trigger()
                .map_err(|source| Error::Interrupt {
                    device: self.shared.kind.name(),
                    source,
                })?;
        }
        Ok(())
    }

    /// Lets the queues' threads come to wait at the gate.
    fn close(&self) {
        let mut paused = locked(&self.paused);
        if !*paused {
            self.shared.gate.close(|| self.shared.kick_all());
            *paused = true;
        }
    }

    /// Waits for the requests in flight, which began `patience` before the deadline, and makes the
    /// changes that waited for them too.
    fn drain(&self, deadline: Instant, patience: Duration) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.shared.gate.drained_within(left) {
            self.finish(&mut locked(&self.registers));
            self.shared.device.quiesce();
            return Ok(());
        }
        let awaited = locked(&self.registers).unfinished.awaited();
        Err(self.shared.hangs(awaited, patience))
    }

    fn flush_by(&self, deadline: Instant, patience: Duration) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.flusher.flush(&self.shared, left, patience)
    }
}
