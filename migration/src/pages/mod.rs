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

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::progress::EncodingCount;

/// Pages and bytes moved, counted by all streams.
#[derive(Default)]
pub(crate) struct Counters {
    pub raw_pages: AtomicU64,
    pub zero_pages: AtomicU64,
    pub hole_pages: AtomicU64,
    /// Bytes of zero ranges are in their headers only.
    pub wire_bytes: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    /// Pages dealt with so far, skipped ones included.
    pub fn pages(&self) -> u64 {
        [&self.raw_pages, &self.zero_pages, &self.hole_pages]
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }

    pub fn encodings(&self) -> BTreeMap<String, EncodingCount> {
        let raw = self.raw_pages.load(Ordering::Relaxed);
        [
            ("raw", raw, raw * crate::PAGE_SIZE),
            ("zero", self.zero_pages.load(Ordering::Relaxed), 0),
            ("hole", self.hole_pages.load(Ordering::Relaxed), 0),
        ]
        .into_iter()
        .map(|(name, pages, bytes)| (name.to_owned(), EncodingCount { pages, bytes }))
        .collect()
    }
}

/// Digest of both sides' memory, as it travels.
pub(crate) fn digest_text(digest: u64) -> String {
    format!("nh64:{digest:016x}")
}
