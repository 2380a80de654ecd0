//! Samples of what images hold, by which two hosts tell whether they have the same one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::{BlockDevice, Buffer, Result};

/// Bytes of a block that is looked at, and its alignment.
pub const BLOCK: u64 = 4096;
/// Places of writes that an image remembers.
pub const REMEMBERED: usize = 64;

/// Where an image was written last; of a long write the first block.
///
/// The last one is always among them: a copy that was made before it differs there, however long ago
/// that was.
#[derive(Debug)]
pub(crate) struct LastWrites {
    /// Block numbers and one; 0 for none.
    blocks: [AtomicU64; REMEMBERED],
    next: AtomicUsize,
}

impl LastWrites {
    pub(crate) const fn none() -> Self {
        Self {
            blocks: [const { AtomicU64::new(0) }; REMEMBERED],
            next: AtomicUsize::new(0),
        }
    }

    pub(crate) fn note(&self, offset: u64) {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        self.blocks[at].store(offset / BLOCK + 1, Ordering::Relaxed);
    }

    /// Offsets of the blocks, ascending, each once.
    pub(crate) fn offsets(&self) -> Vec<u64> {
        let noted = self.blocks.iter().map(|b| b.load(Ordering::Relaxed));
        let mut offsets: Vec<u64> = noted
            .filter_map(|b| b.checked_sub(1))
            .map(|b| b * BLOCK)
            .collect();
        offsets.sort_unstable();
        offsets.dedup();
        offsets
    }
}

/// Hash of the block of `image` at `offset`, which is a multiple of [`BLOCK`], under `key`.
///
/// # Errors
/// When it is outside of the image, or cannot be read.
pub fn hash(image: &dyn BlockDevice, key: &[u8; 32], offset: u64) -> Result<[u8; 8]> {
    // Aligned, as an image that is read past the page cache wants it.
    let mut memory = [0; 2 * BLOCK as usize];
    let skip = memory.as_ptr().align_offset(BLOCK as usize);
    let block = &mut memory[skip..skip + BLOCK as usize];
    image.read(&[Buffer::new(block)], offset)?;
    let hash = blake3::keyed_hash(key, block);
    let mut short = [0; 8];
    short.copy_from_slice(&hash.as_bytes()[..8]);
    Ok(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_writes_are_remembered_and_no_more() {
        let writes = LastWrites::none();
        assert!(writes.offsets().is_empty());
        writes.note(BLOCK - 1);
        writes.note(0);
        writes.note(5 * BLOCK + 7);
        assert_eq!(writes.offsets(), [0, 5 * BLOCK]);
        for i in 0..1000 {
            writes.note((1 << 40) + i * BLOCK);
        }
        let offsets = writes.offsets();
        assert_eq!(offsets.len(), REMEMBERED);
        assert_eq!(offsets[REMEMBERED - 1], (1 << 40) + 999 * BLOCK);
    }
}
