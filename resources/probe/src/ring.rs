//! One queue of a virtio device with many requests under way, which may be completed in any order.
//!
//! Each request has its place, three descriptors one behind the other, so that nothing is looked for.

use core::sync::atomic::{Ordering, fence};

use crate::clock::{peek, poke};
use crate::memory::PAGE;
use crate::virtio::{self, Buffer};

/// Most entries that are used; their descriptors fill a page, and both rings another.
const MOST: u32 = 256;
/// Where the used ring lies behind the available one.
const USED: u64 = 1024;
/// Descriptors of a request.
const CHAIN: u16 = 3;
/// VIRTQ_USED_F_NO_NOTIFY
const NO_NOTIFY: u16 = 1;

/// Memory of a ring.
pub const BYTES: u64 = 2 * PAGE;

pub struct Ring {
    base: u64,
    size: u16,
    memory: u64,
    added: u16,
    taken: u16,
    told: u16,
}

impl Ring {
    /// Brings up queue 0 of the device and agrees on VERSION_1 and those of `features` that it offers;
    /// the ring and these features. `memory` is [`BYTES`] long.
    pub fn new(base: u64, features: u32, memory: u64) -> Option<(Self, u32)> {
        for word in 0..BYTES / 8 {
            poke(memory + word * 8, 0u64);
        }
        let features = virtio::begin(base, features)?;
        let offered = virtio::offered(base, 0).min(MOST) as u16;
        let size = offered.checked_ilog2().map(|order| 1 << order)?;
        let rings = memory + PAGE;
        virtio::enable(base, size, [memory, rings, rings + USED]);
        virtio::go(base);
        let ring = Self {
            base,
            size,
            memory,
            added: 0,
            taken: 0,
            told: 0,
        };
        Some((ring, features))
    }

    /// Requests that have room at once.
    pub fn places(&self) -> usize {
        usize::from(self.size / CHAIN)
    }

    fn rings(&self) -> u64 {
        self.memory + PAGE
    }

    /// Puts a request of at most three buffers in its place, which is free. The device knows of it
    /// after [`Self::notify`].
    pub fn put(&mut self, place: usize, buffers: &[Buffer]) {
        let first = place as u16 * CHAIN;
        virtio::describe(self.memory, first, buffers);
        let slot = u64::from(self.added % self.size);
        poke(self.rings() + 4 + slot * 2, first);
        self.added = self.added.wrapping_add(1);
    }

    /// Hands over all requests that were put in their places.
    pub fn notify(&mut self) {
        if self.told == self.added {
            return;
        }
        self.told = self.added;
        fence(Ordering::SeqCst);
        poke(self.rings() + 2, self.added);
        fence(Ordering::SeqCst);
        if peek::<u16>(self.rings() + USED) & NO_NOTIFY == 0 {
            poke(self.base + 0x50, 0u32);
        }
    }

    /// Place of a request that is done; `None` when there is none. What the device names may be no
    /// place at all.
    pub fn take(&mut self) -> Option<usize> {
        let used = self.rings() + USED;
        if peek::<u16>(used + 2) == self.taken {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = u64::from(self.taken % self.size);
        let head: u32 = peek(used + 4 + slot * 8);
        self.taken = self.taken.wrapping_add(1);
        let place = head as usize / usize::from(CHAIN);
        Some(if head % u32::from(CHAIN) == 0 {
            place
        } else {
            usize::MAX
        })
    }
}
