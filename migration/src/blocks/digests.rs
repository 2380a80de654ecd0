//! Digests by which blocks are recognised that are there already.

use super::sums::block_sum;
use crate::PAGE_SIZE;
use crate::raw::{HashKey, RamSlice};
use crate::vm::BLOCK_SIZE;
use crate::wire::digests::BlockDigest;

/// Key of the digests of one migration: a guest that does not know it cannot choose two blocks that have the same.
#[derive(Clone, Copy)]
pub(crate) struct DigestKey([u8; 32]);

impl DigestKey {
    /// Follows from the secret of the migration.
    pub fn new(secret: &[u8; 16]) -> Self {
        let context = "vmm migration block digest v1";
        Self(blake3::derive_key(context, secret))
    }

    /// Of a block, the last of which may be short.
    pub fn digest(&self, block: &[u8]) -> BlockDigest {
        let hash = blake3::keyed_hash(&self.0, block);
        std::array::from_fn(|at| hash.as_bytes()[at])
    }
}

/// By what both sides know blocks.
#[derive(Clone)]
pub(crate) struct Keys {
    pub digest: DigestKey,
    /// Of the digest of all that is placed; `None` when that is not verified.
    pub sum: Option<std::sync::Arc<HashKey>>,
}

impl Keys {
    /// What the block at byte `offset` of disk `volume` adds to the digest of all; `pages` is a multiple of the page size.
    pub fn sum(&self, volume: usize, offset: u64, pages: RamSlice<'_>) -> u64 {
        let key = self.sum.as_deref();
        key.map_or(0, |key| block_sum(key, volume, offset, pages))
    }
}

/// The blocks of `bytes`, of which `len` are of the disk; each with where it begins and its length on the disk.
pub(super) fn blocks_of(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..len).step_by(BLOCK_SIZE as usize);
    starts.map(move |at| (at, (BLOCK_SIZE as usize).min(len - at)))
}

/// Bytes of whole pages that hold `len`.
pub(super) fn in_pages(len: usize) -> usize {
    len.next_multiple_of(PAGE_SIZE as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_all_of_the_block_and_on_the_secret() {
        let key = DigestKey::new(&[1; 16]);
        let mut block = vec![7; BLOCK_SIZE as usize];
        let digest = key.digest(&block);
        assert_eq!(key.digest(&block), digest);
        assert_ne!(DigestKey::new(&[2; 16]).digest(&block), digest);
        assert_ne!(key.digest(&block[512..]), digest);
        for at in [0, 1, block.len() / 2, block.len() - 1] {
            block[at] ^= 1;
            assert_ne!(key.digest(&block), digest, "byte {at}");
            block[at] ^= 1;
        }
    }
}
