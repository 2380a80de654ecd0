//! Interrupts for completed requests: soon, but not for each.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use migration::GuestRam;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::BadRequest;

/// Completed requests are announced at the latest after so many ...
const MOST_UNANNOUNCED: u32 = 16;
/// ... or when the first of them has waited so long.
const LONGEST_UNANNOUNCED: Duration = Duration::from_micros(100);

/// Whether the driver is to be interrupted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Notice {
    /// It is.
    Due,
    /// Later, or not at all.
    NotDue,
}

/// Tells when what was completed is to be announced.
#[derive(Debug)]
pub(super) struct Announcer {
    completed: u32,
    since: Option<Instant>,
    /// Where the used ring stood when it was last announced.
    announced: u16,
}

impl Announcer {
    /// For a queue of which everything is announced.
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            completed: 0,
            since: None,
            announced: queue.next_used(),
        }
    }

    /// A request is about to be completed.
    pub(super) fn begin(&mut self, queue: &Queue) {
        if self.completed == 0 {
            self.announced = queue.next_used();
        }
    }

    /// Counts a completed request, and announces it unless more are about to come.
    pub(super) fn completed(
        &mut self,
        queue: &Queue,
        ram: &GuestRam,
    ) -> Result<Notice, BadRequest> {
        self.completed += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.completed >= MOST_UNANNOUNCED || since.elapsed() >= LONGEST_UNANNOUNCED {
            return self.announce(queue, ram);
        }
        Ok(Notice::NotDue)
    }

    /// Announces what is completed, if the driver wants to know.
    pub(super) fn announce(&mut self, queue: &Queue, ram: &GuestRam) -> Result<Notice, BadRequest> {
        if self.completed == 0 {
            return Ok(Notice::NotDue);
        }
        self.completed = 0;
        self.since = None;
        let wanted = wanted(queue, self.announced, ram)?;
        self.announced = queue.next_used();
        Ok(if wanted { Notice::Due } else { Notice::NotDue })
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
