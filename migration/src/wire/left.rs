//! Blocks of a disk that stay with its source when the guest goes: control frames whose bodies are not JSON.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::Error;

/// Words in one frame at most: blocks of 32 GiB.
pub const LEFT_WORDS: usize = 8192;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
struct Head {
    volume: U32,
    reserved: U32,
    first: U64,
}

/// Longest body.
pub(super) const MAX_LEFT: usize = size_of::<Head>() + LEFT_WORDS * size_of::<u64>();

/// Source to destination, the guest stands still: these blocks of a disk are not there, or not as the guest wrote them last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlocksLeft {
    /// The disk's number.
    pub volume: u32,
    /// The word, of 64 blocks, with which they begin.
    pub first: u64,
    /// A bit for each block, least significant first; at least one is set.
    pub words: Vec<u64>,
}

impl BlocksLeft {
    /// What is said of disk `volume`, of which the blocks are left that `words` have, in as few frames as may be: of a stretch
    /// without any nothing is said.
    pub fn of(volume: u32, words: &[u64]) -> impl Iterator<Item = Self> {
        let pieces = words.chunks(LEFT_WORDS).zip(0..);
        pieces.filter_map(move |(piece, number)| {
            let from = piece.iter().position(|word| *word != 0)?;
            let end = piece.iter().rposition(|word| *word != 0)? + 1;
            Some(Self {
                volume,
                first: (number * LEFT_WORDS + from) as u64,
                words: piece[from..end].to_vec(),
            })
        })
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let head = Head {
            volume: self.volume.into(),
            reserved: 0.into(),
            first: self.first.into(),
        };
        let words = self.words.iter().flat_map(|word| word.to_le_bytes());
        head.as_bytes().iter().copied().chain(words).collect()
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, Error> {
        let malformed = || Error::Protocol(format!("blocks-left of {} bytes", body.len()));
        let (head, rest) = Head::read_from_prefix(body).map_err(|_| malformed())?;
        let (words, over) = rest.as_chunks();
        if words.is_empty() || !over.is_empty() || words.len() > LEFT_WORDS {
            return Err(malformed());
        }
        Ok(Self {
            volume: head.volume.get(),
            first: head.first.get(),
            words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_and_read() {
        let mut words = vec![0; 3 * LEFT_WORDS + 5];
        words[2] = 1 << 63;
        words[LEFT_WORDS - 1] = 7;
        words[3 * LEFT_WORDS + 4] = 1;
        let said: Vec<_> = BlocksLeft::of(9, &words).collect();
        let firsts: Vec<_> = said.iter().map(|left| left.first).collect();
        assert_eq!(firsts, [2, 3 * LEFT_WORDS as u64 + 4]);
        let mut heard = vec![0; words.len()];
        for left in said {
            let left = BlocksLeft::read(&left.body()).unwrap();
            assert_eq!(left.volume, 9);
            let at = left.first as usize;
            heard[at..at + left.words.len()].copy_from_slice(&left.words);
        }
        assert_eq!(heard, words);
        assert_eq!(BlocksLeft::of(0, &[0; 9]).count(), 0);
    }

    #[test]
    fn what_says_nothing_of_blocks_is_refused() {
        let left = BlocksLeft::of(1, &[1]).next().unwrap();
        let body = left.body();
        for wrong in [
            &body[..8],
            &body[..16],
            &body[..23],
            &[&body[..], &[0]].concat(),
        ] {
            BlocksLeft::read(wrong).unwrap_err();
        }
        BlocksLeft::read(&vec![1; MAX_LEFT + 8]).unwrap_err();
    }
}
