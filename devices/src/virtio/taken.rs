//! A request that was taken from its queue and has not ended.

// It keeps the guest's memory itself, for as long as the disk likes, which no lifetime says.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::thread::ThreadId;

use block::{Action, Buffer, Durability, Job};
use migration::GuestRam;
use virtio_queue::desc::split::Descriptor;

use super::chain::{BadRequest, Chain};
use super::disk_requests::Asked;

/// Whose requests these are: it submits them to the backend, and completes them.
pub(super) trait RequestOwner: Send + Sync {
    /// The guest's memory.
    fn ram(&self) -> &GuestRam;

    /// An action of a request has ended.
    fn ended(self: Arc<Self>, taken: Box<Taken>, result: block::Result<()>);

    /// A request needs what has not come yet.
    fn park(self: Arc<Self>, taken: Box<Taken>);

    /// A request was dropped by whoever had it.
    fn lost(self: Arc<Self>);
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// Its queue.
    pub(super) queue: usize,
    /// Its first descriptor.
    pub(super) head: u16,
    /// The thread that took it, which announces what has ended when there is nothing left to take.
    pub(super) by: ThreadId,
    /// Arrivals that were counted before it was submitted.
    pub(super) arrivals: u64,
}

/// A request in flight. Used again for later ones, so that taking one allocates nothing.
pub(super) struct Taken {
    /// Its memory, which `owner` keeps; empty without one.
    chain: Chain<'static>,
    owner: Option<Arc<dyn RequestOwner>>,
    pub(super) origin: Origin,
    pub(super) asked: Asked,
    pub(super) action: Action,
}

// SAFETY: beside the chain everything is sent anyway. The chain is addresses of guest memory, which any
// thread may access and which `owner`, that goes along, keeps; and references to atomic marks.
unsafe impl Send for Taken {}

impl Taken {
    /// No request yet.
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            chain: Chain::new(),
            owner: None,
            origin,
            asked: Asked {
                request: 0,
                room: 0,
                durability: Durability::Flushed,
                done: 0,
            },
            action: Action::Flush,
        }
    }

    /// Becomes the request of these descriptors, at most `limit` of them.
    ///
    /// # Errors
    /// When they break the rules; it is no request then.
    pub(super) fn fill(
        &mut self,
        owner: Arc<dyn RequestOwner>,
        origin: Origin,
        descriptors: impl Iterator<Item = Descriptor>,
        limit: usize,
    ) -> Result<(), BadRequest> {
        self.origin = origin;
        // SAFETY: what the reference leads to is inside of `owner`, which stays where it is and unchanged
        // for as long as it is held. It is held until the chain has been cleared (`end`, and `drop`), and
        // the chain is borrowed for shorter than that: to functions that take any lifetime, and for as
        // long as `self` is borrowed.
        let ram: &'static GuestRam = unsafe { &*std::ptr::from_ref(owner.ram()) };
        self.owner = Some(owner);
        let loaded = self.chain.load(ram, descriptors, limit);
        if loaded.is_err() {
            self.end();
        }
        loaded
    }

    /// Has `act` look at its memory.
    pub(super) fn with<T>(&mut self, act: impl FnOnce(&mut Chain<'_>, &mut Asked) -> T) -> T {
        act(&mut self.chain, &mut self.asked)
    }

    /// Stops being a request; whose it was.
    pub(super) fn end(&mut self) -> Option<Arc<dyn RequestOwner>> {
        self.chain.clear();
        self.owner.take()
    }
}

impl Job for Taken {
    fn action(&self) -> Action {
        self.action
    }

    fn buffers(&self) -> &[Buffer<'_>] {
        self.chain.buffers()
    }

    fn complete(self: Box<Self>, result: block::Result<()>) {
        if let Some(owner) = self.owner.clone() {
            owner.ended(self, result);
        }
    }

    fn park(self: Box<Self>) {
        if let Some(owner) = self.owner.clone() {
            owner.park(self);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(owner) = self.end() {
            owner.lost();
        }
    }
}
