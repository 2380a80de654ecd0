//! A disk of which a part is elsewhere still: what is asked for is fetched, and all the rest as told.
//!
//! # How it is used
//! The image is made empty, and beside it a [`PresenceMap`] of what the [`Origin`] holds. The layer over the image is the
//! disk from then on, and the origin does not change any more. When nothing is missing and [`OnDemand::finish`] has made
//! that durable, the image alone is the disk: the layer is taken away by a pivot, and the map removed. After a crash the
//! layer is made anew with the map that is opened then.
//!
//! # Invariants
//! - A block that is *present* is read and written in the image alone, whatever is the matter with the origin. One that is
//!   *absent* is never read from the image; a request that needs it fails with [`Error::Absent`], and with
//!   [`Error::SourceLost`] where the origin has been lost for as long as its user wants that ([`OnLoss::Fail`]).
//! - *Present wins*: what a request has written is never replaced by what comes ([`blocks`]).
//! - A flush that was confirmed covers the bits of what it covers ([`keeping`]). No bit is durable before its content is
//!   ([`map`]).
//! - A write that covers a block, a discard and zeroes fetch nothing of it; a block of which a part is written is fetched
//!   before.

mod bits;
mod blocks;
mod fetching;
mod image_origin;
mod keeping;
mod map;
mod map_format;
#[cfg(test)]
mod orders;
mod origin;
mod supply;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

pub use bits::BLOCK;
pub use fetching::Pull;
pub use image_origin::ImageOrigin;
pub use map::PresenceMap;
pub use map_format::{About, MOST_NOTE};
pub use origin::{Allocation, Class, Origin, OriginError};
pub use supply::{OnLoss, Status, Supply};

use self::bits::touched;
use self::blocks::{Awaited, Blocks, Cover, Outcome};
use self::fetching::Fetching;
use self::keeping::Keeping;
use self::supply::Standing;
use super::pass_on::Layer;
use crate::copy::Steering;
use crate::{
    Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Extent, ExtentKind, Result,
    ZeroMode,
};

/// How long the drop of a layer waits for what the origin was asked.
const FAREWELL: Duration = Duration::from_secs(1);

/// How many threads ask the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For what requests wait for.
    pub demand: NonZeroUsize,
    /// For the rest.
    pub background: NonZeroUsize,
}

impl Default for Limits {
    fn default() -> Self {
        const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();
        Self {
            demand: TWO,
            background: TWO,
        }
    }
}

/// What is fetched, and what happens while nothing comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is fetched beside what is asked for.
    pub pull: Pull,
    /// What requests do that wait for an origin that is lost.
    pub on_loss: OnLoss,
    /// How many threads do it.
    pub limits: Limits,
}

/// A layer over an image of which a part is elsewhere.
pub struct OnDemand {
    fetching: Arc<Fetching>,
    threads: Vec<JoinHandle<()>>,
}

impl OnDemand {
    /// Has `image` be the disk together with what `origin` gives of what `map` says is missing. `steering` is that of the
    /// background. Starts threads, each of which calls `begin` first of all.
    ///
    /// # Errors
    /// [`Error::PresenceMap`] when the map is of a disk of another size; [`Error::Thread`] when the threads cannot be
    /// started.
    pub fn new(
        image: Arc<dyn BlockDevice>,
        map: PresenceMap,
        origin: Arc<dyn Origin>,
        policy: Policy,
        steering: Arc<Steering>,
        begin: fn(),
    ) -> Result<Self> {
        let size = image.size();
        let path = || PathBuf::from(image.identity().name);
        if map.about().disk != size {
            let why = "for a disk of another size";
            return Err(Error::PresenceMap { path: path(), why });
        }
        let (keeping, present) = Keeping::new(map);
        let blocks = Blocks::new(size, present);
        let fetching = Arc::new(Fetching::new(
            Arc::clone(&image),
            Arc::clone(&origin),
            (blocks, keeping),
            Standing::new(policy.on_loss),
            steering,
            policy.pull,
        ));
        fetching.steering.set_left(fetching.missing());
        let told: Weak<Fetching> = Arc::downgrade(&fetching);
        origin.tell_return(Arc::new(move || {
            if let Some(fetching) = told.upgrade() {
                fetching.returned();
            }
        }));
        let mut layer = Self {
            fetching,
            threads: Vec::new(),
        };
        // Should one not start, the drop of the layer ends the others.
        let Limits { demand, background } = policy.limits;
        let started = (0..demand.get())
            .try_for_each(|_| layer.start("fetch-demand", Fetching::serve_demands, begin))
            .and_then(|()| {
                (0..background.get())
                    .try_for_each(|_| layer.start("fetch-ahead", Fetching::serve_background, begin))
            });
        started.map_err(|source| Error::Thread {
            path: path(),
            source,
        })?;
        Ok(layer)
    }

    fn start(&mut self, name: &str, serve: fn(&Fetching), begin: fn()) -> std::io::Result<()> {
        let alive = self.fetching.begin_thread();
        let thread = std::thread::Builder::new().name(name.into());
        let started = thread.stack_size(256 << 10).spawn(move || {
            begin();
            serve(alive.shared());
        });
        self.threads.push(started?);
        Ok(())
    }

    /// How much is missing, and how it comes along.
    pub fn status(&self) -> Status {
        let [demanded, background] = self.fetching.fetched();
        Status {
            origin: self.fetching.origin.name(),
            missing_bytes: self.fetching.missing().min(self.fetching.image.size()),
            fetched_bytes: demanded + background,
            demanded_bytes: demanded,
            supply: self.fetching.standing.supply(),
            lost_for: self.fetching.standing.lost_for(),
        }
    }

    /// Changes what is fetched beside what is asked for; acts at once.
    pub fn set_pull(&self, pull: Pull) {
        self.fetching.set_pull(pull);
    }

    /// Changes what requests do while nothing comes; acts at once.
    pub fn set_on_loss(&self, on_loss: OnLoss) {
        self.fetching.set_on_loss(on_loss);
    }

    /// What steers the background.
    pub fn steering(&self) -> &Arc<Steering> {
        &self.fetching.steering
    }

    /// What the map says that it is of.
    pub fn about(&self) -> &About {
        self.fetching.keeping.map().about()
    }

    /// Waits until nothing is missing, at most so long; whether nothing is.
    pub fn wait_whole(&self, patience: Duration) -> bool {
        self.fetching.wait_whole(patience)
    }

    /// Whether the block of byte `offset`, which is one of the disk, is here.
    pub fn has(&self, offset: u64) -> bool {
        self.fetching.blocks.are_present(&(offset..offset + 1))
    }

    /// Before any request is made: the image holds all of the disk but the blocks that `missing` has, a bit for each in words of
    /// 64, and was flushed. Makes that durable.
    ///
    /// # Errors
    /// As [`OnDemand::finish`].
    pub fn holds_all_but(&self, missing: &[u64]) -> Result<()> {
        self.fetching.blocks.are_here_but(missing);
        self.finish()?;
        // Somebody may wait until it is whole.
        self.fetching.arrived(Awaited::No);
        Ok(())
    }

    /// Fetches nothing any more, for nobody, from here on; whether all has ended that was being fetched, which it is waited for at
    /// most so long. An origin that answers soon is the caller's matter.
    pub fn end_fetching(&self, patience: Duration) -> bool {
        self.fetching.stop();
        self.fetching.wait_ended(0, patience)
    }

    /// Makes durable all that is here, and that it is here; how many bytes are missing.
    ///
    /// # Errors
    /// When the storage of the image or of the map does not confirm it.
    pub fn finish(&self) -> Result<u64> {
        self.fetching.keeping.keep_all(&*self.fetching.image)?;
        Ok(self.fetching.keeping.map().missing() * BLOCK)
    }

    /// The range of a request; `None` where it needs nothing, or lies outside of the disk, which the image tells.
    fn range(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len)?;
        (len > 0 && end <= self.fetching.image.size()).then_some(offset..end)
    }

    /// What a request is told that has to wait for a part of `range`.
    fn absent(&self, range: &Range<u64>) -> Error {
        let path = PathBuf::from(self.fetching.image.identity().name);
        let (offset, len) = (range.start, range.end - range.start);
        match self.fetching.standing.failure() {
            None => Error::Absent { path, offset, len },
            Some(why) => Error::SourceLost {
                path,
                offset,
                len,
                why,
            },
        }
    }

    /// Makes a change of `range`, whose blocks are here or are covered by it.
    fn change<T>(&self, range: &Range<u64>, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Fetching {
            blocks, keeping, ..
        } = &*self.fetching;
        if blocks.are_present(range) {
            if keeping.are_kept(touched(range)) {
                return make();
            }
            keeping.begin_change();
            let made = make();
            keeping.end_change(touched(range));
            return made;
        }
        let mut asked = false;
        let cover = blocks.cover(range, &mut asked);
        if asked {
            self.fetching.ask();
        }
        let Cover::Taken(covered) = cover else {
            return Err(self.absent(range));
        };
        keeping.begin_change();
        let made = make();
        let outcome = if made.is_ok() {
            Outcome::Written
        } else {
            Outcome::Failed
        };
        let awaited = blocks.end_cover(covered, outcome);
        keeping.end_change(touched(range));
        self.fetching.steering.set_left(self.fetching.missing());
        self.fetching.arrived(awaited);
        made
    }
}

impl Layer for OnDemand {
    const NAME: &'static str = "on-demand";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.fetching.image
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        if let Some(range) = self.range(offset, Buffer::total_len(buffers)) {
            let blocks = &self.fetching.blocks;
            if !blocks.are_present(&range)
                && let Some(asked) = blocks.want(&range)
            {
                if asked {
                    self.fetching.ask();
                }
                return Err(self.absent(&range));
            }
        }
        self.inner().read(buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let image = &self.fetching.image;
        let Some(range) = self.range(offset, Buffer::total_len(buffers)) else {
            return image.write(buffers, offset, durability);
        };
        self.change(&range, || image.write(buffers, offset, durability))?;
        if durability == Durability::Immediate && !self.fetching.keeping.are_kept(touched(&range)) {
            // Of a write that is durable its bits are too.
            return self.flush_all();
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let image = &self.fetching.image;
        let blocks = &self.fetching.blocks;
        let range = match self.range(offset, len) {
            Some(range) if !blocks.are_present(&range) => range,
            Some(range) => return self.change(&range, || image.discard(offset, len)),
            None => return image.discard(offset, len),
        };
        if blocks.has_absent_edge(&range) && !blocks.has_whole_block(&range) {
            // Of a range all or nothing is zero, and nothing is fetched where no block becomes free.
            return Ok(Discarded::Kept);
        }
        // What the image holds of an absent block is not what a discard may leave.
        let zeroed = || image.write_zeroes(offset, len, ZeroMode::MayUnmap);
        self.change(&range, zeroed).map(|()| Discarded::Zero)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let image = &self.fetching.image;
        let zeroed = || image.write_zeroes(offset, len, mode);
        match self.range(offset, len) {
            Some(range) => self.change(&range, zeroed),
            None => zeroed(),
        }
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        let Some(range) = self.range(offset, len) else {
            return self.inner().extents(offset, len, limit);
        };
        let blocks = &self.fetching.blocks;
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() < limit {
            let (alike, is_here) = blocks.alike(touched(&(at..range.end)));
            let end = blocks.bytes(&alike).end.min(range.end);
            if is_here {
                let extents = self.inner().extents(at, end - at, limit - found.len())?;
                // All that was not told of is left to whoever asks next.
                let Some(last) = extents.last() else { break };
                at = last.offset + last.len;
                found.extend(extents);
            } else {
                found.push(Extent {
                    offset: at,
                    len: end - at,
                    kind: ExtentKind::Absent,
                });
                at = end;
            }
        }
        Ok(found)
    }

    fn has_unflushed_writes(&self) -> bool {
        self.fetching.keeping.owes() || self.inner().has_unflushed_writes()
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.fetching.arrivals.tell(Arc::clone(&arrived));
        self.inner().tell_arrivals(arrived);
    }
}

impl OnDemand {
    fn flush_all(&self) -> Result<()> {
        self.fetching.keeping.flush(&*self.fetching.image)
    }
}

impl Drop for OnDemand {
    fn drop(&mut self) {
        self.fetching.stop();
        let me = std::thread::current().id();
        let all = self.threads.len();
        self.threads.retain(|thread| thread.thread().id() != me);
        // What has come may be what held this, and drops it. One that waits for its origin is left behind: it ends with that.
        if self.fetching.wait_ended(all - self.threads.len(), FAREWELL) {
            for thread in self.threads.drain(..) {
                let _panicked = thread.join();
            }
        }
    }
}

impl std::fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDemand")
            .field("image", &self.fetching.image.identity())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
