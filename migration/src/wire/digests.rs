//! Questions whether blocks of a disk are there already, and their answers: control frames whose bodies are not JSON.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::Error;

/// Blocks that one question is about at most.
pub const ASKED_BLOCKS: u64 = 64;
/// Questions that wait for an answer at most.
pub const MAX_QUESTIONS: usize = 32;

/// What tells whether a block is the same.
pub type BlockDigest = [u8; 16];

/// Which blocks: the 64 from `first` on, of which those count that have a bit.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Head {
    volume: U32,
    reserved: U32,
    first: U64,
    blocks: U64,
}

/// Length of an answer, and of a question without its digests.
pub(super) const HEAD_LEN: usize = size_of::<Head>();
/// Longest question.
pub(super) const MAX_QUESTION: usize = HEAD_LEN + ASKED_BLOCKS as usize * size_of::<BlockDigest>();

/// 64 blocks of a disk, and some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SomeBlocks {
    /// The disk's number.
    pub volume: u32,
    /// The first of the 64, a multiple of that.
    pub first: u64,
    /// One bit for each, least significant first.
    pub bits: u64,
}

impl SomeBlocks {
    fn head(self) -> Head {
        Head {
            volume: self.volume.into(),
            reserved: 0.into(),
            first: self.first.into(),
            blocks: self.bits.into(),
        }
    }

    fn read<'b>(body: &'b [u8], name: &str) -> Result<(Self, &'b [u8]), Error> {
        let (head, rest) = Head::read_from_prefix(body)
            .map_err(|_| Error::Protocol(format!("{name} of {} bytes", body.len())))?;
        let some = Self {
            volume: head.volume.get(),
            first: head.first.get(),
            bits: head.blocks.get(),
        };
        match some.first.is_multiple_of(ASKED_BLOCKS) {
            true => Ok((some, rest)),
            false => Err(Error::Protocol(format!(
                "{name} from block {} on",
                some.first
            ))),
        }
    }

    /// The numbers of those that have a bit, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        let set = (0..ASKED_BLOCKS).filter(move |at| self.bits >> at & 1 == 1);
        set.map(move |at| self.first + at)
    }
}

/// Source to destination: are these blocks there?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDigests {
    /// Which.
    pub of: SomeBlocks,
    /// One for each of those, in their order.
    pub digests: Vec<BlockDigest>,
}

impl BlockDigests {
    /// Length of its body, in bytes.
    pub fn body_len(&self) -> usize {
        HEAD_LEN + size_of_val(&*self.digests)
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let head = self.of.head();
        [head.as_bytes(), self.digests.as_bytes()].concat()
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, Error> {
        let (of, rest) = SomeBlocks::read(body, "block-digests")?;
        let (digests, over) = rest.as_chunks();
        let count = of.bits.count_ones() as usize;
        if count == 0 || digests.len() != count || !over.is_empty() {
            let (bytes, asked) = (rest.len(), count);
            return Err(Error::Protocol(format!(
                "block-digests with {bytes} bytes of digests for {asked} blocks"
            )));
        }
        Ok(Self {
            of,
            digests: digests.to_vec(),
        })
    }
}

/// Destination to source: which of the blocks of a question are the same there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksPresent(pub SomeBlocks);

impl BlocksPresent {
    pub(super) fn body(self) -> Vec<u8> {
        self.0.head().as_bytes().to_vec()
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, Error> {
        match SomeBlocks::read(body, "blocks-present")? {
            (some, []) => Ok(Self(some)),
            (_, more) => Err(Error::Protocol(format!(
                "blocks-present with {} bytes more",
                more.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> BlockDigests {
        BlockDigests {
            of: SomeBlocks {
                volume: 3,
                first: 128,
                bits: 1 << 63 | 0b101,
            },
            digests: vec![[1; 16], [2; 16], [3; 16]],
        }
    }

    #[test]
    fn a_question_names_blocks_and_their_digests() {
        let question = question();
        assert_eq!(BlockDigests::read(&question.body()).unwrap(), question);
        let numbers: Vec<_> = question.of.numbers().collect();
        assert_eq!(numbers, [128, 130, 191]);
        let answer = BlocksPresent(question.of);
        assert_eq!(BlocksPresent::read(&answer.body()).unwrap(), answer);
    }

    #[test]
    fn what_is_no_question_and_no_answer_is_refused() {
        let body = question().body();
        let mut odd = body.clone();
        odd[8] = 1;
        let none = [&body[..16], &[0; 8]].concat();
        let more = [&body[..], &[0; 16]].concat();
        for wrong in [&body[..8], &body[..24], &body[..71], &odd, &none, &more] {
            BlockDigests::read(wrong).unwrap_err();
        }
        for wrong in [&body[..8], &body, &odd[..24]] {
            BlocksPresent::read(wrong).unwrap_err();
        }
    }
}
