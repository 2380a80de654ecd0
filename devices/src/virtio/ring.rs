//! A queue's rings, and what is known of the requests that were taken from them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use migration::GuestRam;
use virtio_queue::{Queue, QueueT};

use super::announcer::{Announcer, Notice};
use super::chain::{BadRequest, broken};
use super::descriptors;
use super::parked::Parked;
use super::taken::{Origin, RequestOwner, Taken};

/// What belongs to one queue and is changed by one thread at a time.
pub(super) struct Ring {
    pub(super) queue: Queue,
    pub(super) parked: Parked,
    announcer: Announcer,
    /// Requests that have ended, to be used again.
    #[expect(clippy::vec_box, reason = "the box itself goes from hand to hand")]
    spare: Vec<Box<Taken>>,
}

impl Ring {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            announcer: Announcer::new(&queue),
            queue,
            parked: Parked::default(),
            spare: Vec::new(),
        }
    }

    /// Takes the place of a queue that was used, elsewhere or before.
    pub(super) fn replace(&mut self, queue: Queue, parked: Parked) {
        self.announcer = Announcer::new(&queue);
        self.queue = queue;
        self.parked = parked;
    }

    /// Forgets what a driver has set up.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.forget();
    }

    /// Not used any more; should it be used again, then with new rings.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.queue.set_next_avail(0);
        self.queue.set_next_used(0);
        self.forget();
    }

    fn forget(&mut self) {
        self.announcer = Announcer::new(&self.queue);
        self.parked.clear();
    }

    /// Takes the next request: one that was parked and is to be tried again, or one that is available.
    pub(super) fn take<L: RequestOwner + 'static>(
        &mut self,
        owner: &Arc<L>,
        origin: impl FnOnce(u16) -> Origin,
        arrivals: u64,
    ) -> Result<Option<Box<Taken>>, BadRequest> {
        let ram = owner.ram();
        let head = match self.parked.next_due(arrivals) {
            Some(head) => head,
            None => match descriptors::next_head(&mut self.queue, ram)? {
                Some(head) => head,
                None => return Ok(None),
            },
        };
        let descriptors = descriptors::of(&self.queue, ram, head)?;
        let origin = origin(head);
        let spare = self.spare.pop();
        let mut taken = spare.unwrap_or_else(|| Box::new(Taken::new(origin)));
        let limit = usize::from(self.queue.max_size());
        let owner = Arc::clone(owner) as Arc<dyn RequestOwner>;
        match taken.fill(owner, origin, descriptors, limit) {
            Ok(()) => Ok(Some(taken)),
            Err(bad) => {
                self.spare.push(taken);
                Err(bad)
            }
        }
    }

    /// Whether more requests are available.
    pub(super) fn has_more(&self, ram: &GuestRam) -> Result<bool, BadRequest> {
        let available = self.queue.avail_idx(ram, Ordering::Relaxed);
        Ok(available.map_err(broken)?.0 != self.queue.next_avail())
    }

    /// Keeps what was a request, for the next one; whose it was.
    pub(super) fn give_back(&mut self, mut taken: Box<Taken>) -> Option<Arc<dyn RequestOwner>> {
        let owner = taken.end();
        if self.spare.len() < usize::from(self.queue.max_size()) {
            self.spare.push(taken);
        }
        owner
    }

    /// Parks a request; the driver cannot have offered more than the queue holds.
    pub(super) fn park(&mut self, origin: Origin) -> Result<(), BadRequest> {
        if self.parked.len() >= usize::from(self.queue.size()) {
            return Err(BadRequest::Ring("more requests than it holds".into()));
        }
        self.parked.push(origin.head, origin.arrivals);
        Ok(())
    }

    /// Hands a request back to the driver.
    pub(super) fn complete(
        &mut self,
        ram: &GuestRam,
        head: u16,
        written: u32,
    ) -> Result<Notice, BadRequest> {
        self.announcer.begin(&self.queue);
        self.queue.add_used(ram, head, written).map_err(broken)?;
        self.announcer.completed(&self.queue, ram)
    }

    /// Whether the driver is to be told of what was handed back.
    pub(super) fn announce(&mut self, ram: &GuestRam) -> Result<Notice, BadRequest> {
        self.announcer.announce(&self.queue, ram)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("queue", &self.queue)
            .field("parked", &self.parked)
            .finish_non_exhaustive()
    }
}
