//! What travels: the hello of each connection, control frames, batches of pages and blocks, and frames of a pull.
//!
//! Headers are little-endian structs of fixed length that carry a magic number, a kind, a bounded
//! length and a check over themselves and their descriptive part. `docs/protocol.md` has the tables.

pub mod agreed;
pub mod batch;
pub mod blocks;
mod body;
pub mod capabilities;
pub mod control;
pub(crate) mod conversation;
pub mod digests;
pub mod hello;
pub mod kind;
mod left;
pub mod pull;

/// Version of the protocol that this engine speaks.
pub const VERSION: u16 = 4;
/// Oldest version that it still understands.
pub const MIN_VERSION: u16 = 1;

/// Passes that may have ended on a stream while an earlier one is not placed: with the guest stopped, a
/// source does not wait for each.
pub(crate) const MAX_PASSES_AHEAD: u32 = 4;

/// Most RAM regions in a machine description.
pub const MAX_REGIONS: usize = 64;
/// Most data streams.
pub const MAX_STREAMS: u8 = 16;
/// Most disks that travel with a guest.
pub const MAX_VOLUMES: usize = 64;
/// Longest machine state.
pub const MAX_STATE: usize = 64 << 20;

/// First 8 bytes of the BLAKE3 hash over `parts`: finds what checksums of the network let through.
pub(crate) fn check(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    hash.as_bytes()[..8]
        .iter()
        .rev()
        .fold(0, |sum, &byte| (sum << 8) | u64::from(byte))
}
