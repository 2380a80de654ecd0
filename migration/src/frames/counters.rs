//! What has moved so far.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::PAGE_SIZE;
use crate::progress::{DisksReport, EncodingCount};
use crate::vm::BLOCK_SIZE;

/// Pages, blocks and bytes moved, counted by all streams.
#[derive(Default)]
pub(crate) struct Counters {
    pub raw_pages: AtomicU64,
    pub zero_pages: AtomicU64,
    pub hole_pages: AtomicU64,
    /// Bytes of disks that travelled.
    pub disk_bytes: AtomicU64,
    /// Bytes of disks that need not travel: holes and zeroes.
    pub disk_zero_bytes: AtomicU64,
    /// Bytes of disks that were there already.
    pub disk_present_bytes: AtomicU64,
    /// Bytes of the questions whether blocks are there.
    pub digest_bytes: AtomicU64,
    /// Blocks that were not sent in their turn, as the guest had written them again by then.
    pub put_off_blocks: AtomicU64,
    /// Bytes of blocks of mirrored disks that went beside a pass.
    pub echoed_bytes: AtomicU64,
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

    /// Bytes of disks that travelled.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of disks that were there already.
    pub fn present_bytes(&self) -> u64 {
        self.disk_present_bytes.load(Ordering::Relaxed)
    }

    /// Fills in what became of disks, all together.
    pub fn of_disks(&self, report: &mut DisksReport) {
        report.bytes = self.disk_bytes();
        report.zero_bytes = self.disk_zero_bytes.load(Ordering::Relaxed);
        report.present_bytes = self.present_bytes();
        report.digest_bytes = self.digest_bytes.load(Ordering::Relaxed);
        report.mirrored_bytes = self.echoed_bytes.load(Ordering::Relaxed);
        report.deferred_blocks = self.put_off_blocks.load(Ordering::Relaxed);
    }

    /// Bytes of all volumes dealt with so far, skipped ones included.
    pub fn bytes_done(&self) -> u64 {
        let pages = [&self.raw_pages, &self.zero_pages, &self.hole_pages];
        let pages: u64 = pages.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        let put_off = self.put_off_blocks.load(Ordering::Relaxed) * BLOCK_SIZE;
        let zero = self.disk_zero_bytes.load(Ordering::Relaxed);
        pages * PAGE_SIZE + self.disk_bytes() + zero + self.present_bytes() + put_off
    }

    pub fn encodings(&self) -> BTreeMap<String, EncodingCount> {
        let raw = self.raw_pages.load(Ordering::Relaxed);
        [
            ("raw", raw, raw * PAGE_SIZE),
            ("zero", self.zero_pages.load(Ordering::Relaxed), 0),
            ("hole", self.hole_pages.load(Ordering::Relaxed), 0),
        ]
        .into_iter()
        .map(|(name, pages, bytes)| (name.to_owned(), EncodingCount { pages, bytes }))
        .collect()
    }
}
