//! When the guest is told that its disk is durable, which takes the bits of what it wrote as well as the content.
//!
//! # Invariants
//! - A change of a block whose bit is not durable is *owed* from before it begins, and again from when it has ended and its
//!   page is known to have such bits. A flush that finds something owed makes both durable: content, then bits.
//! - Bits of blocks that were only fetched are owed to nobody: what is lost of them is fetched again.
//! - A page of bits is taken before the content is flushed, so that nothing is said to be here that came later.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::bits::Bits;
use super::map::{Pages, PresenceMap, Snapshot};
use super::map_format::PAGE;
use crate::{BlockDevice, Result};

/// The presence map of a disk, and what of it is not durable.
pub(super) struct Keeping {
    map: PresenceMap,
    present: Arc<Bits>,
    /// Pages with bits that are not durable.
    changed: Vec<AtomicBool>,
    /// Beginnings and ends of changes that are owed, and how many of them are kept.
    owed: AtomicU64,
    kept: AtomicU64,
}

impl Keeping {
    /// Of a map that was just made or read; its bits, for whoever sets them.
    pub(super) fn new(map: PresenceMap) -> (Self, Arc<Bits>) {
        let durable = map.durable();
        let blocks = durable.len();
        let present = Bits::new(blocks);
        for index in 0..blocks.div_ceil(64) {
            present.set_word(index, durable.word(index));
        }
        let present = Arc::new(present);
        let pages = blocks.div_ceil(PAGE);
        let keeping = Self {
            map,
            present: Arc::clone(&present),
            changed: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            owed: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        };
        (keeping, present)
    }

    /// The map.
    pub(super) fn map(&self) -> &PresenceMap {
        &self.map
    }

    /// Whether it is durable that all of `blocks` are here.
    pub(super) fn are_kept(&self, blocks: Range<u64>) -> bool {
        self.map.durable().all_set(blocks)
    }

    /// A change is about to be made that will be owed.
    pub(super) fn begin_change(&self) {
        self.owed.fetch_add(1, Ordering::SeqCst);
    }

    /// A change of `blocks` has been made, or has failed; those that are here have their bits.
    pub(super) fn end_change(&self, blocks: Range<u64>) {
        self.note(blocks);
        self.owed.fetch_add(1, Ordering::SeqCst);
    }

    /// Bits of `blocks` have been set.
    pub(super) fn note(&self, blocks: Range<u64>) {
        for page in blocks.start / PAGE..blocks.end.div_ceil(PAGE) {
            if let Some(changed) = self.changed.get(page as usize) {
                changed.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Whether anything is owed that is not kept, changes that are under way among it.
    pub(super) fn owes(&self) -> bool {
        self.kept.load(Ordering::SeqCst) < self.owed.load(Ordering::SeqCst)
    }

    /// Makes durable what the guest has changed of `image`, the content before its bits.
    ///
    /// # Errors
    /// When either storage does not confirm it; all of it is owed still.
    pub(super) fn flush(&self, image: &dyn BlockDevice) -> Result<()> {
        let owed = self.owed.load(Ordering::SeqCst);
        let is_kept = || self.kept.load(Ordering::SeqCst) >= owed;
        if is_kept() {
            return image.flush();
        }
        let mut pages = self.map.pages();
        if is_kept() {
            // Whoever had them meanwhile has kept the bits. The content has its own order.
            drop(pages);
            return image.flush();
        }
        self.keep(&mut pages, image)
    }

    /// Makes durable all that is here.
    ///
    /// # Errors
    /// As [`Keeping::flush`].
    pub(super) fn keep_all(&self, image: &dyn BlockDevice) -> Result<()> {
        let mut pages = self.map.pages();
        self.note_unkept();
        self.keep(&mut pages, image)
    }

    /// Finds the bits that are not durable: who has set one notes that afterwards, and may not have come to it.
    fn note_unkept(&self) {
        let durable = self.map.durable();
        for index in 0..durable.len().div_ceil(64) {
            if self.present.word(index) & !durable.word(index) != 0 {
                self.note(index * 64..index * 64 + 1);
            }
        }
    }

    fn keep(&self, pages: &mut Pages, image: &dyn BlockDevice) -> Result<()> {
        let owed = self.owed.load(Ordering::SeqCst);
        let is_changed = |(page, changed): (u64, &AtomicBool)| {
            let was = changed.swap(false, Ordering::SeqCst);
            was.then(|| Snapshot::of(page, &self.present))
        };
        let snapshots: Vec<_> = (0..).zip(&self.changed).filter_map(is_changed).collect();
        let flushed = image.flush();
        let kept = match flushed {
            Ok(()) if snapshots.is_empty() => Ok(()),
            Ok(()) => self.map.store(pages, &snapshots),
            Err(error) => Err(error),
        };
        if kept.is_err() {
            for snapshot in &snapshots {
                self.note(snapshot.page * PAGE..snapshot.page * PAGE + 1);
            }
        } else {
            self.kept.fetch_max(owed, Ordering::SeqCst);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::bits::BLOCK;
    use super::super::map_format::About;
    use super::super::origin::Allocation;
    use super::*;
    use crate::{Access, Content, RawImage};

    fn storage(path: &std::path::Path, len: u64) -> Arc<dyn BlockDevice> {
        let made = File::create(path).and_then(|file| file.set_len(len));
        made.unwrap();
        Arc::new(RawImage::open(path, Access::ReadWrite, Content::Container).unwrap())
    }

    #[test]
    fn all_is_kept_that_is_here_also_what_nobody_has_noted_yet() {
        const SIZE: u64 = 100 * BLOCK;
        let dir = tempfile::tempdir().unwrap();
        let image = storage(&dir.path().join("image"), SIZE);
        let about = About {
            disk: SIZE,
            id: [7; 16],
            note: Vec::new(),
        };
        let absent = Allocation::none(SIZE);
        absent.add(&(0..SIZE));
        let file = storage(&dir.path().join("map"), PresenceMap::length(SIZE));
        let (keeping, present) = Keeping::new(PresenceMap::create(file, about, &absent).unwrap());
        (0..100).for_each(|block| _ = present.set(block));
        keeping.keep_all(&*image).unwrap();
        assert_eq!(keeping.map().missing(), 0);
    }
}
