//! What of a disk changed since when: a generation for each block of 64 KiB, exact however many write.
//!
//! # How it is used
//! Any number of users (a migration, a mirror, a backup) ask on their own, and none disturbs another. Each begins a
//! generation *before* it asks for what changed since the one that it began last, and reads these blocks afterwards:
//!
//! ```text
//! since = FIRST
//! loop { next = begin_generation(); for range in changed_since(since) { read range }; since = next }
//! ```
//!
//! # Invariants
//! The *stamp* of a block is the number of a generation, and never becomes less. A change is: take the generation
//! *g*, raise the stamps of its blocks to *g*, change the disk; then take the generation again, and as long as it is
//! not the one of the last mark, raise the stamps to it and take it once more. Only then has the change ended, failed
//! or not, and somebody may be told. So:
//!
//! 1. *A change ends in the generation of its mark.* When it took the generation for the last time, its blocks were
//!    stamped with it. Whoever begins a later one afterwards asks for what changed since one that is not later, and
//!    finds the mark. One mark behind the change is not enough: between taking the generation and marking, somebody
//!    may begin another one and ask.
//! 2. *What is read is not forgotten.* Whoever began *G* and then read a block without a change that was under way is
//!    told that it has changed since *G* when it has ended: the change was not on the disk when it was read, so it
//!    takes the generation afterwards, and ends in *G* or later. Both sides have a sequentially consistent fence
//!    between their two steps, so that not each can miss what the other did.
//! 3. *The last look is complete.* When no change is under way (the device is drained, paused, or has just been
//!    pivoted) `changed_since` tells all blocks in which the disk differs from what was read.
//!
//! A stamp is never taken back, so that nothing is lost by a user that fails, or reads a block in vain.
//!
//! # Where it lies
//! The map outlives the layer: a stack that is exchanged takes the same map up. It begins with the disk at rest,
//! because a pivot drains: no change is under way that it would not know of.

pub(super) mod changes;
mod table;

use std::sync::Arc;

pub(crate) use changes::Begun;
pub use changes::{BLOCK, Change, ChangeMap, Changed, Generation};

use super::pass_on::Layer;
use crate::{BlockDevice, Buffer, Discarded, Durability, Result, ZeroMode};

/// A layer that marks every change in a [`ChangeMap`].
pub struct Tracker {
    inner: Arc<dyn BlockDevice>,
    map: Arc<ChangeMap>,
}

impl Tracker {
    /// Marks the changes of `inner` in `map`, which is one for a disk of its size.
    pub fn new(inner: Arc<dyn BlockDevice>, map: Arc<ChangeMap>) -> Self {
        Self { inner, map }
    }

    /// What is known of the changes.
    pub fn map(&self) -> &Arc<ChangeMap> {
        &self.map
    }
}

impl Layer for Tracker {
    const NAME: &'static str = "tracker";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn marks(&self) -> Option<&Arc<ChangeMap>> {
        Some(&self.map)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let _change = self.map.begin_change(offset, Buffer::total_len(buffers));
        self.inner.write(buffers, offset, durability)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let _change = self.map.begin_change(offset, len);
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let _change = self.map.begin_change(offset, len);
        self.inner.write_zeroes(offset, len, mode)
    }
}
