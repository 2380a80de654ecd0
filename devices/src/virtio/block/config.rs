//! The disk's configuration space (virtio 1.2, 5.2.4).

use block::SECTOR_SIZE;

/// Most bytes of one segment of a request.
pub(super) const SIZE_MAX: u32 = 4 << 20;
/// Entries of a queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Most segments of a request: its header and status take a descriptor each.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// Most sectors in one discarded range: 2 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// Most sectors in one zeroed range: 16 MiB, because zeroes may have to be written one by one, and a
/// pause waits for the request.
pub(super) const MAX_ZERO_SECTORS: u32 = 32 << 10;

/// Length of the space up to and including the write-zeroes fields.
pub(super) const LEN: usize = 60;

/// Lays the space out.
pub(super) fn config_space(sectors: u64, queues: u16) -> [u8; LEN] {
    let mut space = [0; LEN];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    // 16: geometry, not offered.
    put(20, &(SECTOR_SIZE as u32).to_le_bytes());
    // 24: topology, not offered; 32: writeback, not offered.
    put(34, &queues.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    // Alignment of discards: one page of a file.
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    // Zeroed ranges may be unmapped.
    put(56, &[1]);
    space
}
