//! How a presence map lies in its file.
//!
//! A header, and then two slots for each page of bits; each of them takes [`PIECE`] bytes. Numbers are little endian.
//!
//! | header | |
//! |---|---|
//! | 0..8 | `vmm-map\n` |
//! | 8..12 | version, 1 |
//! | 12..16 | bytes of a block |
//! | 16..24 | bytes of the disk |
//! | 24..40 | identifier |
//! | 40..44 | bytes of the note |
//! | 44.. | note, then zeroes |
//! | 4064..4096 | BLAKE3 of what is before |
//!
//! | slot | |
//! |---|---|
//! | 0..8 | number, from 1 on; of two slots that are whole the greater one counts |
//! | 8..4064 | a bit for each block, set where it is present |
//! | 4064..4096 | BLAKE3 of the identifier, the number of the page, and what is before |

use super::bits::BLOCK;

/// Bytes of the header and of a slot.
pub const PIECE: usize = 4096;
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes that a digest is of.
const DIGESTED: usize = PIECE - DIGEST;
/// Where the note begins.
const NOTE: usize = 44;
/// Most bytes of a note.
pub const MOST_NOTE: usize = DIGESTED - NOTE;
/// Words of bits in a slot.
pub(super) const WORDS: usize = (DIGESTED - 8) / 8;
/// Blocks of a page.
pub(super) const PAGE: u64 = WORDS as u64 * 64;

const MAGIC: [u8; 8] = *b"vmm-map\n";
const VERSION: u32 = 1;

/// What a presence map is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Bytes of the disk.
    pub disk: u64,
    /// Who made it: a job, a migration.
    pub id: [u8; 16],
    /// What its maker has to find again: at most [`MOST_NOTE`] bytes.
    pub note: Vec<u8>,
}

/// Bits of a page.
pub(super) type Words = [u64; WORDS];

/// Pages of bits for a disk of `disk` bytes.
pub(super) fn pages(disk: u64) -> u64 {
    disk.div_ceil(BLOCK).div_ceil(PAGE)
}

/// Bytes of the file for a disk of `disk` bytes.
pub(super) fn length(disk: u64) -> u64 {
    (1 + 2 * pages(disk)) * PIECE as u64
}

/// Where a slot, 0 or 1, of a page lies in the file.
pub(super) fn place(page: u64, slot: usize) -> u64 {
    (1 + 2 * page + slot as u64) * PIECE as u64
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        number.copy_from_slice(found);
    }
    number
}

/// The header of a map; nothing if the note is too long.
pub(super) fn encode_header(about: &About) -> Option<[u8; PIECE]> {
    let mut header = [0; PIECE];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    header[16..24].copy_from_slice(&about.disk.to_le_bytes());
    header[24..40].copy_from_slice(&about.id);
    header[40..NOTE].copy_from_slice(&u32::try_from(about.note.len()).ok()?.to_le_bytes());
    let note = header[NOTE..DIGESTED].get_mut(..about.note.len())?;
    note.copy_from_slice(&about.note);
    let digest = blake3::hash(&header[..DIGESTED]);
    header[DIGESTED..].copy_from_slice(digest.as_bytes());
    Some(header)
}

/// What the header says.
///
/// # Errors
/// Why it is none that this version reads, in words that follow "is".
pub(super) fn decode_header(header: &[u8; PIECE]) -> Result<About, &'static str> {
    if header[..8] != MAGIC {
        return Err("not a presence map");
    }
    let version = u32::from_le_bytes(number(header, 8));
    if version != VERSION {
        return Err("a presence map of another version");
    }
    let digest = blake3::hash(&header[..DIGESTED]);
    if *digest.as_bytes() != header[DIGESTED..] {
        return Err("a presence map with a damaged header");
    }
    if u64::from(u32::from_le_bytes(number(header, 12))) != BLOCK {
        return Err("a presence map of blocks of another size");
    }
    let len = u32::from_le_bytes(number(header, 40)) as usize;
    let note = header[NOTE..DIGESTED].get(..len);
    Ok(About {
        disk: u64::from_le_bytes(number(header, 16)),
        id: number(header, 24),
        note: note
            .ok_or("a presence map with a note that is too long")?
            .to_vec(),
    })
}

fn digest(id: &[u8; 16], page: u64, digested: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id);
    hasher.update(&page.to_le_bytes());
    hasher.update(digested);
    hasher.finalize()
}

/// A slot of a page.
pub(super) fn encode_slot(id: &[u8; 16], page: u64, sequence: u64, words: &Words) -> [u8; PIECE] {
    let mut slot = [0; PIECE];
    slot[..8].copy_from_slice(&sequence.to_le_bytes());
    for (bytes, word) in slot[8..DIGESTED].chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let digest = digest(id, page, &slot[..DIGESTED]);
    slot[DIGESTED..].copy_from_slice(digest.as_bytes());
    slot
}

/// The number and the bits of a slot; nothing of one that is not whole, or was never written.
pub(super) fn decode_slot(id: &[u8; 16], page: u64, slot: &[u8; PIECE]) -> Option<(u64, Words)> {
    let sequence = u64::from_le_bytes(number(slot, 0));
    if sequence == 0 || *digest(id, page, &slot[..DIGESTED]).as_bytes() != slot[DIGESTED..] {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(slot[8..DIGESTED].chunks_exact(8)) {
        *word = u64::from_le_bytes(number(bytes, 0));
    }
    Some((sequence, words))
}
