//! Exchanging what carries a disk's requests out, between two requests of its guest.
//!
//! The gate is closed, the requests in flight end on the old backend, the new one takes its place, and the gate is
//! opened. Nothing of it is seen by the guest but that its requests wait for a moment, and the path of a request has
//! no lock that it waits for: it reads which backend there is, and nobody exchanges it while a request is in flight.
//!
//! # Invariants
//! - A request belongs to one backend from when it is taken to its end. None begins on the new backend before all have
//!   ended on the old.
//! - The new backend answers for all that the old one has completed: a read sees it, and a flush makes it durable.
//!   Whoever has made the stack sees to that.
//! - What was parked is submitted to the new backend.
//! - A device that is paused has nothing that is not durable: what takes the place of its backend is flushed before.
//! - A pivot that fails has changed nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::Backend;

use super::awaited::Awaited;
use super::disk_requests::DiskRequests;
use super::transport::MmioTransport;
use crate::locked::locked;
use crate::{Error, Result};

/// What is left to do when no request to a disk is in flight any more, before those to its next backend begin.
///
/// Requests of the guest wait for all of it.
pub trait Handover {
    /// What can go wrong.
    type Error: From<Error>;

    /// Gives the next backend what only the one before has. It is flushed afterwards.
    ///
    /// # Errors
    /// The device goes on with the backend that it has.
    fn complete(&mut self) -> std::result::Result<(), Self::Error>;

    /// Makes it known that the next backend is the disk's: nothing fails after this.
    ///
    /// # Errors
    /// The device goes on with the backend that it has.
    fn decide(&mut self) -> std::result::Result<(), Self::Error>;
}

/// The backend that was there before, if the device has any.
type Before = Option<Arc<dyn Backend>>;

impl MmioTransport {
    /// Has the requests of a disk carried out by `next` from here on, whether the device runs, is paused or is being
    /// reset; pivots of several threads happen one after the other. No request fails by it; requests that are in
    /// flight have `patience` to end, for which new ones wait. How long new ones waited.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the guest would see another disk, or this is none. [`Error::Hangs`] when requests do not
    /// end in time, or [`Error::Flush`] when the device is paused and `next` cannot be made durable: nothing is
    /// changed then, and the device goes on.
    pub fn pivot(&self, next: Arc<dyn Backend>, patience: Duration) -> Result<Duration> {
        self.pivot_by(next, patience, |this, next, deadline| {
            this.exchange_drained(next, deadline, patience)
        })
    }

    /// As [`MmioTransport::pivot`], to another image of the disk, to which the rest is brought while requests wait.
    ///
    /// # Errors
    /// As there, and those of `handover`: nothing is changed then, and the device goes on.
    pub fn hand_over<H: Handover>(
        &self,
        next: Arc<dyn Backend>,
        patience: Duration,
        handover: &mut H,
    ) -> std::result::Result<Duration, H::Error> {
        self.pivot_by(next, patience, |this, next, deadline| {
            this.exchange_handed_over(next, deadline, patience, handover)
        })
    }

    fn pivot_by<E: From<Error>>(
        &self,
        next: Arc<dyn Backend>,
        patience: Duration,
        exchange: impl FnOnce(&Self, Arc<dyn Backend>, Instant) -> std::result::Result<Before, E>,
    ) -> std::result::Result<Duration, E> {
        let shared = &self.shared;
        let unfit = |reason| Error::Unfit {
            device: shared.kind.name(),
            reason,
        };
        let requests = shared.device.disk_requests();
        let backing = requests
            .map(DiskRequests::backing)
            .ok_or_else(|| unfit("its requests are not carried out by a disk".into()))?;
        let _alone = locked(&self.pivots);
        if let Some(reason) = backing.misfit(&*next) {
            return Err(unfit(reason).into());
        }
        // Before there is anything that it could bring: it finds nothing parked that it would be too early for.
        shared.hear_arrivals(&*next);
        let began = Instant::now();
        shared.gate.close(|| shared.kick_all());
        let exchanged = exchange(self, next, began + patience);
        shared.gate.open();
        let stood = began.elapsed();
        // What is parked is to be tried again; and queues may have been notified meanwhile.
        shared.retry_parked();
        // With the gate open, as it ends threads.
        exchanged.map(|old| {
            drop(old);
            stood
        })
    }

    /// Waits until no request is in flight behind the closed gate.
    fn drained(&self, deadline: Instant, patience: Duration) -> Result<()> {
        let shared = &self.shared;
        let left = deadline.saturating_duration_since(Instant::now());
        if shared.gate.drained_within(left) {
            return Ok(());
        }
        Err(shared.hangs(Awaited::Pivot, patience))
    }

    fn exchange(&self, next: Arc<dyn Backend>) -> Before {
        let requests = self.shared.device.disk_requests();
        requests.map(|requests| requests.backing().exchange(next))
    }

    /// Waits until no request is in flight behind the closed gate, and exchanges the backend; the old one.
    fn exchange_drained(
        &self,
        next: Arc<dyn Backend>,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Before> {
        let shared = &self.shared;
        self.drained(deadline, patience)?;
        let mut is_durable = false;
        loop {
            {
                // A pause begins before, and finds the old backend to be flushed, which is replaced by what is
                // flushed here; or it begins afterwards, and flushes the new one.
                let paused = locked(&self.paused);
                if !*paused || is_durable {
                    return Ok(self.exchange(next));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.flusher
                .flush_backend(shared, Arc::clone(&next), left, patience)?;
            is_durable = true;
        }
    }

    /// As [`MmioTransport::exchange_drained`], with what is to be done in between. What takes the place of the old
    /// backend is durable whether the device is paused or not.
    fn exchange_handed_over<H: Handover>(
        &self,
        next: Arc<dyn Backend>,
        deadline: Instant,
        patience: Duration,
        handover: &mut H,
    ) -> std::result::Result<Before, H::Error> {
        self.drained(deadline, patience)?;
        handover.complete()?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.flusher
            .flush_backend(&self.shared, Arc::clone(&next), left, patience)?;
        handover.decide()?;
        Ok(self.exchange(next))
    }
}
