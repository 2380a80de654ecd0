//! In which generation each block was changed last.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::table::{Page, SLOTS, Table};

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;

/// A time between two calls of [`ChangeMap::begin_generation`]. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u32);

impl Generation {
    /// The one in which a map begins: all that it knows of has changed since.
    pub const FIRST: Self = Self(1);
}

/// In which generation each block of a disk was changed last, and how often it is changed.
///
/// Four bytes for each block, and one more for how often; taken for 64 MiB of the disk at once, when the first
/// of it is changed.
pub struct ChangeMap {
    size: u64,
    generation: AtomicU32,
    table: Table,
}

impl ChangeMap {
    /// The map of a disk of `size` bytes, of which nothing has changed.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            generation: AtomicU32::new(Generation::FIRST.0),
            table: Table::new(size.div_ceil(BLOCK).div_ceil(SLOTS)),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Begins a generation, to which all changes belong that end from here on.
    ///
    /// After some four thousand million there is no other, and all that changed in the last one goes on counting as
    /// changed in it: more is told then than would be necessary, never less.
    pub fn begin_generation(&self) -> Generation {
        let next = |generation: u32| generation.checked_add(1);
        let begun = self
            .generation
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
            .map_or_else(|last| last, |before| before + 1);
        // With the one at the end of a change: whoever reads the disk from here on sees what was written, or the
        // writer sees this generation.
        fence(Ordering::SeqCst);
        Generation(begun)
    }

    /// The generation that was begun last.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// The blocks that were changed in `since` or later, as the bytes of ranges that do not touch, ascending.
    ///
    /// They are looked for as they are taken, so that any number of them needs no memory. Whatever ended before this
    /// call is among them; a change that goes on meanwhile is told now, or to whoever asks again when it has ended.
    pub fn changed_since(&self, since: Generation) -> Changed<'_> {
        Changed {
            map: self,
            // What never changed is stamped 0.
            since: since.0.max(Generation::FIRST.0),
            heats: 0..=u8::MAX,
            next: 0,
        }
    }

    /// Whether the block at `offset` was changed in `since` or later, as far as [`ChangeMap::changed_since`] would tell now.
    pub fn has_changed(&self, offset: u64, since: Generation) -> bool {
        let block = offset / BLOCK;
        match self.table.next(block / SLOTS) {
            Some((page, known)) if page == block / SLOTS => {
                let stamp = known.stamps[slot(block)].load(Ordering::Acquire);
                // What never changed is stamped 0.
                stamp >= since.0.max(Generation::FIRST.0)
            }
            _ => false,
        }
    }

    /// In how many generations the block at `offset` was changed, halved by each [`ChangeMap::cool`]; at most 255.
    pub fn heat(&self, offset: u64) -> u8 {
        let block = offset / BLOCK;
        match self.table.next(block / SLOTS) {
            Some((page, known)) if page == block / SLOTS => {
                known.heats[slot(block)].load(Ordering::Relaxed)
            }
            _ => 0,
        }
    }

    /// Halves the heat of all blocks, so that it tells of what happened lately.
    pub fn cool(&self) {
        let mut from = 0;
        while let Some((page, known)) = self.table.next(from) {
            for heat in &known.heats {
                // A change that is counted meanwhile may get lost, which does no harm.
                heat.store(heat.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
            from = page + 1;
        }
    }

    /// Marks what is about to be changed; and again when the result is dropped, as long as another generation has begun
    /// by then. What lies outside of the disk is left out.
    pub fn begin_change(&self, offset: u64, len: u64) -> Change<'_> {
        Change {
            map: self,
            begun: self.begin(offset, len),
        }
    }

    /// As [`ChangeMap::begin_change`], for a change that ends elsewhere: by [`ChangeMap::end`], whatever comes of it.
    #[must_use]
    pub(crate) fn begin(&self, offset: u64, len: u64) -> Begun {
        let end = offset.saturating_add(len).min(self.size);
        let blocks = if offset < end {
            offset / BLOCK..end.div_ceil(BLOCK)
        } else {
            0..0
        };
        let marked = self.generation.load(Ordering::Acquire);
        self.mark(&blocks, marked);
        Begun { blocks, marked }
    }

    /// The change has ended, failed or not.
    pub(crate) fn end(&self, begun: &mut Begun) {
        loop {
            // With the one of `begin_generation`.
            fence(Ordering::SeqCst);
            let now = self.generation.load(Ordering::Acquire);
            if now == begun.marked {
                return;
            }
            self.mark(&begun.blocks, now);
            // Yet another may have begun, and been asked for, before the mark.
            begun.marked = now;
        }
    }

    fn mark(&self, blocks: &Range<u64>, generation: u32) {
        let mut block = blocks.start;
        while block < blocks.end {
            let page = self.table.page(block / SLOTS);
            let end = blocks.end.min((block / SLOTS + 1) * SLOTS);
            for block in block..end {
                mark(page, slot(block), generation);
            }
            block = end;
        }
    }
}

/// Index of a block in its page.
fn slot(block: u64) -> usize {
    (block % SLOTS) as usize
}

fn mark(page: &Page, slot: usize, generation: u32) {
    let stamp = &page.stamps[slot];
    // Most of what is written was written in the same generation before, and is not written once more.
    if stamp.load(Ordering::Relaxed) < generation
        && stamp.fetch_max(generation, Ordering::AcqRel) < generation
    {
        let heat = &page.heats[slot];
        // One of two at once may get lost, which does no harm.
        heat.store(
            heat.load(Ordering::Relaxed).saturating_add(1),
            Ordering::Relaxed,
        );
    }
}

impl fmt::Debug for ChangeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeMap")
            .field("size", &self.size)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Where a change that is under way was marked.
#[derive(Debug)]
pub(crate) struct Begun {
    blocks: Range<u64>,
    /// The generation in which it was marked.
    marked: u32,
}

/// A change of the disk that is under way, until it is dropped.
#[derive(Debug)]
pub struct Change<'m> {
    map: &'m ChangeMap,
    begun: Begun,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.map.end(&mut self.begun);
    }
}

/// Ranges that changed, see [`ChangeMap::changed_since`].
#[derive(Debug)]
pub struct Changed<'m> {
    map: &'m ChangeMap,
    since: u32,
    heats: RangeInclusive<u8>,
    /// The next block to be looked at.
    next: u64,
}

impl Changed<'_> {
    /// Only what is as hot as this, so that blocks that change often can be put off.
    #[must_use]
    pub fn of_heat(self, heats: RangeInclusive<u8>) -> Self {
        Self { heats, ..self }
    }

    /// Only what lies at or behind the block that holds byte `offset`.
    #[must_use]
    pub fn from(self, offset: u64) -> Self {
        Self {
            next: offset / BLOCK,
            ..self
        }
    }

    fn fits(&self, page: &Page, slot: usize) -> bool {
        page.stamps[slot].load(Ordering::Acquire) >= self.since
            && self
                .heats
                .contains(&page.heats[slot].load(Ordering::Relaxed))
    }

    /// The first block from `from` on of which it is so that it fits.
    fn seek(&self, from: u64, is_so: bool) -> Option<u64> {
        let mut block = from;
        loop {
            let (number, page) = match self.map.table.next(block / SLOTS) {
                Some(found) => found,
                None => return (!is_so).then_some(block),
            };
            if number > block / SLOTS {
                if !is_so {
                    return Some(block);
                }
                block = number * SLOTS;
            }
            while block < (number + 1) * SLOTS {
                if self.fits(page, slot(block)) == is_so {
                    return Some(block);
                }
                block += 1;
            }
        }
    }
}

impl Iterator for Changed<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let first = self.seek(self.next, true)?;
        // There is always one that does not fit, at the latest behind the last page.
        let end = self.seek(first + 1, false)?;
        // It does not fit, or did not a moment ago; the range that may begin there must not touch this one.
        self.next = end + 1;
        Some(first * BLOCK..(end * BLOCK).min(self.map.size))
    }
}
