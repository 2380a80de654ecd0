//! Interrupts for completed requests: soon, but not for each.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use migration::GuestRam;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::BadRequest;
use super::shared::Shared;

/// Completed requests are announced at the latest after so many ...
const MOST_UNANNOUNCED: u32 = 16;
/// ... or when the first of them has waited so long.
const LONGEST_UNANNOUNCED: Duration = Duration::from_micros(100);

/// Announces what was completed since it was made.
pub(super) struct Announcer<'s> {
    shared: &'s Shared,
    completed: u32,
    since: Option<Instant>,
    /// Where the used ring stood when it was last announced.
    announced: u16,
}

impl<'s> Announcer<'s> {
    /// For a queue of which everything is announced.
    pub(super) fn new(shared: &'s Shared, queue: &Queue) -> Self {
        Self {
            shared,
            completed: 0,
            since: None,
            announced: queue.next_used(),
        }
    }

    /// Counts a completed request, and announces it unless more are about to come.
    pub(super) fn completed(&mut self, queue: &Queue) -> Result<(), BadRequest> {
        self.completed += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.completed >= MOST_UNANNOUNCED || since.elapsed() >= LONGEST_UNANNOUNCED {
            self.announce(queue)?;
        }
        Ok(())
    }

    /// Announces what is completed, if the driver wants to know.
    pub(super) fn announce(&mut self, queue: &Queue) -> Result<(), BadRequest> {
        if self.completed == 0 {
            return Ok(());
        }
        self.completed = 0;
        self.since = None;
        let wanted = wanted(queue, self.announced, &self.shared.ram)?;
        self.announced = queue.next_used();
        if wanted {
            self.shared.raise(VIRTIO_MMIO_INT_VRING);
        }
        Ok(())
    }
}

/// Whether the driver wants an interrupt for what was completed since the used ring stood at `before`
/// (virtio 1.2, 2.7.7).
fn wanted(queue: &Queue, before: u16, ram: &GuestRam) -> Result<bool, BadRequest> {
    // What the driver says must not be older than what was completed.
    fence(Ordering::SeqCst);
    let load = |offset: u64| {
        let address = queue.avail_ring().checked_add(offset);
        let address = address.ok_or_else(|| BadRequest::Ring("it wraps around".into()))?;
        ram.load(GuestAddress(address), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|error| BadRequest::Ring(error.to_string()))
    };
    if !queue.event_idx_enabled() {
        return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    // Behind flags, index and entries.
    let event = load(4 + 2 * u64::from(queue.size()))?;
    let now = queue.next_used();
    Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
}
