//! The block pipeline: disks that travel with their guest, in blocks of 64 KiB whose changes are marked as a page's are.

mod batch;
pub(crate) mod buffer;
pub(crate) mod changes;
pub(crate) mod comparing;
pub(crate) mod digests;
mod echo;
pub(crate) mod finder;
mod kept;
mod kept_here;
mod matches;
pub(crate) mod receiver;
mod rest;
pub(crate) mod sender;
mod sums;

use std::ops::Range;

use crate::PAGE_SIZE;
use crate::vm::BLOCK_SIZE;

/// Blocks in a stripe (2 MiB): the unit in which a disk is divided among the data streams.
pub(crate) const STRIPE_BLOCKS: u64 = 32;
/// Bytes in a stripe.
pub(crate) const STRIPE: u64 = STRIPE_BLOCKS * BLOCK_SIZE;
/// Largest disk that travels: what addresses in the digest have room for.
pub(crate) const MAX_SIZE: u64 = 1 << 47;

/// Stripes of a disk of `size` bytes.
pub(crate) fn stripes(size: u64) -> u64 {
    size.div_ceil(STRIPE)
}

/// Where the page at byte `offset` of disk `volume` stands in the digest: no page of memory has that address.
pub(crate) fn digest_address(volume: usize, offset: u64) -> u64 {
    1 << 63 | (volume as u64) << 47 | offset
}

/// `range` with its ends on pages' boundaries, but not beyond `within`, whose beginning is on one.
pub(crate) fn widened(range: Range<u64>, within: &Range<u64>) -> Range<u64> {
    let start = range.start - range.start % PAGE_SIZE;
    let end = range.end.div_ceil(PAGE_SIZE) * PAGE_SIZE;
    start.max(within.start)..end.min(within.end)
}
