//! The page pipeline: what is dirty, how it is sent, how it is placed.

mod batch;
pub(crate) mod dirty;
pub(crate) mod full_digest;
pub(crate) mod hashes;
mod plan;
pub(crate) mod populate;
mod populate_cost;
pub(crate) mod processors;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod stripes;
mod window;

/// Digest of both sides' memory, as it travels.
pub(crate) fn digest_text(digest: u64) -> String {
    format!("nh64:{digest:016x}")
}
