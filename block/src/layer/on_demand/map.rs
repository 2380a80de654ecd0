//! Which blocks of a disk are here, in a file beside its image, durably.
//!
//! # Invariants
//! - A bit is written when the content of its block is durable, and is never taken back. So a power cut may leave less
//!   than was known, never more.
//! - A page of bits has two slots, which are written in turn, and the second one when the first is durable. So a write
//!   that was torn leaves the page as it was before.
//! - Whoever is told that bits are durable has them after any crash: a page of which neither slot is whole is damage, and
//!   no map is read that has one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bits::{BLOCK, Bits};
use super::map_format::{self, About, PAGE, PIECE, WORDS, Words};
use super::origin::Allocation;
use crate::{BlockDevice, Buffer, Durability, Error, Result};

/// The newest slot of a page.
#[derive(Clone, Copy)]
struct Newest {
    sequence: u64,
    slot: usize,
}

/// The pages as they lie in the file; whoever has this writes them.
pub(super) struct Pages {
    newest: Vec<Newest>,
}

/// A page's bits as they are to be.
pub(super) struct Snapshot {
    pub(super) page: u64,
    words: Words,
}

impl Snapshot {
    /// Of what is set now.
    pub(super) fn of(page: u64, bits: &Bits) -> Self {
        let mut words = [0; WORDS];
        for (word, index) in words.iter_mut().zip(page * WORDS as u64..) {
            *word = bits.word(index);
        }
        Self { page, words }
    }

    fn set_in(&self, bits: &Bits) {
        for (word, index) in self.words.iter().zip(self.page * WORDS as u64..) {
            if *word != 0 {
                bits.set_word(index, *word);
            }
        }
    }
}

/// A presence map.
pub struct PresenceMap {
    storage: Arc<dyn BlockDevice>,
    about: About,
    durable: Bits,
    pages: Mutex<Pages>,
}

impl PresenceMap {
    /// Bytes that the file of a map for a disk of `disk` bytes has.
    pub fn length(disk: u64) -> u64 {
        map_format::length(disk)
    }

    /// Makes the map of a disk of which what `allocation` has is missing; all else counts as here, as the image is empty.
    /// It is durable when this returns. `storage` has [`PresenceMap::length`] bytes.
    ///
    /// # Errors
    /// When it cannot be written, or the note is too long.
    pub fn create(
        storage: Arc<dyn BlockDevice>,
        about: About,
        allocation: &Allocation,
    ) -> Result<Self> {
        let map = Self::over(storage, about)?;
        if allocation.size() != map.about.disk {
            return Err(map.refused("for a disk of another size than its origin has"));
        }
        let all = map.durable.len();
        let mut at = 0;
        for run in allocation.runs() {
            (at..run.start / BLOCK).for_each(|block| _ = map.durable.set(block));
            at = run.end.div_ceil(BLOCK);
        }
        (at..all).for_each(|block| _ = map.durable.set(block));
        let header = map_format::encode_header(&map.about);
        let header = header.ok_or_else(|| map.refused("given a note that is too long"))?;
        let mut pages = map.pages();
        for (page, newest) in (0..).zip(&mut pages.newest) {
            let bits = Snapshot::of(page, &map.durable).words;
            let slot = map_format::encode_slot(&map.about.id, page, 1, &bits);
            map.put(&slot, map_format::place(page, 0))?;
            // Written too, so that there is room for it later.
            map.put(&[0; PIECE], map_format::place(page, 1))?;
            *newest = Newest {
                sequence: 1,
                slot: 0,
            };
        }
        drop(pages);
        map.storage.flush()?;
        // Last, so that what has a header is whole.
        map.put(&header, 0)?;
        map.storage.flush()?;
        Ok(map)
    }

    /// Reads the map of a disk of `disk` bytes.
    ///
    /// # Errors
    /// [`Error::PresenceMap`] when it is none, or damaged; and when it cannot be read.
    pub fn open(storage: Arc<dyn BlockDevice>, disk: u64) -> Result<Self> {
        let about = Self::read_about(&*storage)?;
        let named = PathBuf::from(storage.identity().name);
        if about.disk != disk {
            let why = "for a disk of another size";
            return Err(Error::PresenceMap { path: named, why });
        }
        let map = Self::over(storage, about)?;
        let mut pages = map.pages();
        for (page, newest) in (0..).zip(&mut pages.newest) {
            let mut found = None;
            for slot in 0..2 {
                let mut piece = [0; PIECE];
                map.get(&mut piece, map_format::place(page, slot))?;
                if let Some((sequence, words)) =
                    map_format::decode_slot(&map.about.id, page, &piece)
                {
                    let is_newer = found
                        .as_ref()
                        .is_none_or(|(newest, _): &(Newest, Snapshot)| newest.sequence < sequence);
                    if is_newer {
                        found = Some((Newest { sequence, slot }, Snapshot { page, words }));
                    }
                }
            }
            let (known, bits) = found.ok_or_else(|| map.refused("damaged"))?;
            bits.set_in(&map.durable);
            *newest = known;
        }
        drop(pages);
        Ok(map)
    }

    /// What a map says that it is of, without its bits.
    ///
    /// # Errors
    /// As [`PresenceMap::open`].
    pub fn read_about(storage: &dyn BlockDevice) -> Result<About> {
        let path = PathBuf::from(storage.identity().name);
        if storage.size() < PIECE as u64 {
            let why = "too short for a presence map";
            return Err(Error::PresenceMap { path, why });
        }
        let mut header = [0; PIECE];
        storage.read(&[Buffer::new(&mut header)], 0)?;
        map_format::decode_header(&header).map_err(|why| Error::PresenceMap { path, why })
    }

    /// An empty one, if the file is as long as it has to be.
    fn over(storage: Arc<dyn BlockDevice>, about: About) -> Result<Self> {
        let disk = about.disk;
        // Nothing is taken for the bits before it is known that the file has them.
        if disk > u64::MAX / 2 || storage.size() != map_format::length(disk) {
            return Err(Error::PresenceMap {
                path: PathBuf::from(storage.identity().name),
                why: "not as long as the presence map of that disk",
            });
        }
        let none = Newest {
            sequence: 0,
            slot: 0,
        };
        let pages = usize::try_from(map_format::pages(disk)).unwrap_or(usize::MAX);
        Ok(Self {
            storage,
            about,
            durable: Bits::new(disk.div_ceil(BLOCK)),
            pages: Mutex::new(Pages {
                newest: vec![none; pages],
            }),
        })
    }

    /// What it is of.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// How many blocks are missing, as far as that is durable.
    pub fn missing(&self) -> u64 {
        self.durable.len() - self.durable.count()
    }

    /// Whether each block is here, as far as that is durable.
    pub fn present(&self) -> Vec<bool> {
        let blocks = 0..self.durable.len();
        blocks.map(|block| self.durable.is_set(block)).collect()
    }

    /// Whether a block is here, as far as that is durable; what is none of the disk is.
    pub fn has(&self, block: u64) -> bool {
        self.durable.is_set(block)
    }

    /// Makes it durable that these blocks are here.
    ///
    /// # Errors
    /// When the storage does not confirm it: a part of that may be durable.
    pub fn set(&self, blocks: impl Iterator<Item = u64>) -> Result<()> {
        let mut pages = self.pages();
        let bits = Bits::new(self.durable.len());
        let words = 0..self.durable.len().div_ceil(64);
        words.for_each(|index| bits.set_word(index, self.durable.word(index)));
        let mut changed = std::collections::BTreeSet::new();
        for block in blocks.filter(|block| bits.set(*block)) {
            changed.insert(block / PAGE);
        }
        let snapshots: Vec<_> = changed
            .iter()
            .map(|page| Snapshot::of(*page, &bits))
            .collect();
        self.store(&mut pages, &snapshots)
    }

    /// The bits that are durable.
    pub(super) fn durable(&self) -> &Bits {
        &self.durable
    }

    /// The pages, for whoever writes them next.
    pub(super) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes bits durable whose blocks are.
    ///
    /// # Errors
    /// When the storage does not confirm it; the bits that were durable before are then as before.
    pub(super) fn store(&self, pages: &mut Pages, snapshots: &[Snapshot]) -> Result<()> {
        let mut written = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            let known = pages.newest.get(snapshot.page as usize);
            let Some(known) = known else { continue };
            let next = Newest {
                sequence: known.sequence + 1,
                slot: 1 - known.slot,
            };
            let id = &self.about.id;
            let slot = map_format::encode_slot(id, snapshot.page, next.sequence, &snapshot.words);
            self.put(&slot, map_format::place(snapshot.page, next.slot))?;
            written.push((snapshot, next));
        }
        self.storage.flush()?;
        // From here on, and not before, the other slots may be written over.
        for (snapshot, next) in written {
            snapshot.set_in(&self.durable);
            pages.newest[snapshot.page as usize] = next;
        }
        Ok(())
    }

    fn put(&self, piece: &[u8; PIECE], at: u64) -> Result<()> {
        let mut piece = *piece;
        let buffers = [Buffer::new(&mut piece)];
        self.storage.write(&buffers, at, Durability::Flushed)
    }

    fn get(&self, piece: &mut [u8; PIECE], at: u64) -> Result<()> {
        self.storage.read(&[Buffer::new(piece)], at)
    }

    fn refused(&self, why: &'static str) -> Error {
        let path = PathBuf::from(self.storage.identity().name);
        Error::PresenceMap { path, why }
    }
}

impl std::fmt::Debug for PresenceMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PresenceMap")
            .field("storage", &self.storage.identity())
            .field("missing", &self.missing())
            .finish_non_exhaustive()
    }
}
