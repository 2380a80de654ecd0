//! How often each cluster of an image is referenced, found by going through its tables.

use super::super::chain::refused;
use super::super::entry::{self, COPIED, Mapped};
use super::super::refusal::Refusal;
use super::{Findings, Header, read_at};
use crate::image::qcow2::header::Place;
use crate::{BlockDevice, RawImage, Result};

/// Most clusters of a file that is gone through: 1 TiB of the smallest that are usual, 16 TiB of the usual ones.
pub const MAX_CLUSTERS: u64 = 1 << 28;

/// A cluster to which a table of the disk leads.
const ACTIVE: u8 = 1;
/// What leads to it says that nothing else does.
const IS_COPIED: u8 = 2;

/// The references of an image.
#[derive(Debug)]
pub(crate) struct References {
    cluster_bits: u32,
    counts: Vec<u16>,
    marks: Vec<u8>,
    /// Tables that lead to where nothing can be.
    pub(crate) errors: Findings,
    /// Clusters of the disk that are in the file, and those of them that are compressed.
    pub(crate) allocated: u64,
    pub(crate) compressed: u64,
    /// Offsets of the refcount blocks, as the refcount table lists them; 0 for none.
    pub(crate) refcount_blocks: Vec<u64>,
}

impl References {
    /// Goes through the header and the tables of the disk; what refcount blocks, snapshots and bitmaps take
    /// is added by others.
    ///
    /// # Errors
    /// When it cannot be read, or has more than [`MAX_CLUSTERS`].
    pub(crate) fn of(file: &RawImage, header: &Header) -> Result<Self> {
        let clusters = file.size().div_ceil(header.cluster());
        if clusters > MAX_CLUSTERS {
            let what = format!("{clusters} clusters are too many to be gone through here");
            return Err(refused(file)(Refusal::Damaged(what)));
        }
        let mut references = Self {
            cluster_bits: header.cluster_bits,
            counts: vec![0; clusters as usize],
            marks: vec![0; clusters as usize],
            errors: Findings::default(),
            allocated: 0,
            compressed: 0,
            refcount_blocks: Vec::new(),
        };
        references.add("header", Place { offset: 0, len: 1 }, 0);
        references.add_l1(file, "L1 table", header.l1, ACTIVE)?;
        Ok(references)
    }

    /// Adds the refcount table, and the blocks to which it leads.
    pub(crate) fn add_refcounts(&mut self, file: &RawImage, header: &Header) -> Result<()> {
        let place = header.refcount_table;
        if !self.add("refcount table", place, 0) {
            return Ok(());
        }
        let table = self.read(file, place)?;
        self.refcount_blocks = entry::entries(&table).collect();
        while self.refcount_blocks.last() == Some(&0) {
            self.refcount_blocks.pop();
        }
        for index in 0..self.refcount_blocks.len() {
            let offset = self.refcount_blocks[index];
            let len = 1 << self.cluster_bits;
            if offset != 0
                && (!self.add_cluster("refcount block", offset, 0)
                    || self.is_used_again("refcount block", Place { offset, len }))
            {
                self.refcount_blocks[index] = 0;
            }
        }
        Ok(())
    }

    /// Adds an L1 table and all that it leads to; `marks` is 0 for one that is not the disk's.
    pub(crate) fn add_l1(
        &mut self,
        file: &RawImage,
        what: &'static str,
        place: Place,
        marks: u8,
    ) -> Result<()> {
        // What is used twice is gone through once: a table must not make more work than it takes space.
        if !self.add(what, place, 0) || self.is_used_again(what, place) {
            return Ok(());
        }
        let l1 = self.read(file, place)?;
        let mut table = vec![0; 1 << self.cluster_bits];
        for (index, entry) in entry::entries(&l1).enumerate() {
            let offset = entry::l2_table(entry);
            if !entry::is_l1(entry) {
                self.errors
                    .add(|| format!("entry {index} of the {what} is {entry:#x}"));
            }
            if offset == 0 || !self.add_cluster("L2 table", offset, marks | copied(entry, marks)) {
                continue;
            }
            let len = 1 << self.cluster_bits;
            if marks != 0 && self.is_used_again("L2 table", Place { offset, len }) {
                continue;
            }
            read_at(file, offset, &mut table)?;
            for entry in entry::entries(&table) {
                self.add_mapped(entry, marks);
            }
        }
        Ok(())
    }

    fn add_mapped(&mut self, entry: u64, marks: u8) {
        match Mapped::of(entry, self.cluster_bits) {
            Mapped::Nowhere => {}
            Mapped::Invalid => self
                .errors
                .add(|| format!("an entry of an L2 table is {entry:#x}")),
            Mapped::At(offset) => {
                self.add_cluster("data", offset, marks | copied(entry, marks));
                self.allocated += u64::from(marks != 0);
            }
            Mapped::Compressed { offset, len } => {
                self.add("compressed data", Place { offset, len }, 0);
                self.allocated += u64::from(marks != 0);
                self.compressed += u64::from(marks != 0);
            }
        }
    }

    /// Whether a cluster of what was just added had another use already, which is wrong.
    fn is_used_again(&mut self, what: &'static str, place: Place) -> bool {
        let end = place.offset.saturating_add(place.len);
        let mut clusters = place.offset >> self.cluster_bits..end.div_ceil(1 << self.cluster_bits);
        let again = clusters.any(|cluster| self.count(cluster) > 1);
        if again {
            let at = place.offset;
            self.errors
                .add(|| format!("{what} at {at:#x} has another use"));
        }
        again
    }

    /// Adds a cluster, whether it can be one.
    pub(crate) fn add_cluster(&mut self, what: &'static str, offset: u64, marks: u8) -> bool {
        let len = 1 << self.cluster_bits;
        if offset.is_multiple_of(len) {
            return self.add(what, Place { offset, len }, marks);
        }
        self.errors
            .add(|| format!("{what} at {offset:#x}, which is no beginning of a cluster"));
        false
    }

    /// Adds all clusters that a place touches, whether they are in the file.
    pub(crate) fn add(&mut self, what: &'static str, place: Place, marks: u8) -> bool {
        let end = place.offset.saturating_add(place.len);
        let clusters = place.offset >> self.cluster_bits..end.div_ceil(1 << self.cluster_bits);
        if clusters.end > self.counts.len() as u64 {
            self.errors.add(|| {
                let Place { offset, len } = place;
                format!("{what}, {len} bytes at {offset:#x}, ends behind the file's end")
            });
            return false;
        }
        for at in clusters {
            // Within the bounds of a vector.
            let at = at as usize;
            self.counts[at] = self.counts[at].saturating_add(1);
            self.marks[at] |= marks;
        }
        true
    }

    /// Reads what a place holds; nothing where it is not in the file, which was told already.
    pub(crate) fn read(&self, file: &RawImage, place: Place) -> Result<Vec<u8>> {
        if place.offset >= file.size() {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; place.len as usize];
        read_at(file, place.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Clusters of the file.
    pub(crate) fn len(&self) -> u64 {
        self.counts.len() as u64
    }

    /// How often a cluster is referenced.
    pub(crate) fn count(&self, cluster: u64) -> u16 {
        let at = usize::try_from(cluster).ok();
        at.and_then(|at| self.counts.get(at)).copied().unwrap_or(0)
    }

    /// Whether a table of the disk leads to the cluster as a whole.
    pub(crate) fn is_active(&self, cluster: u64) -> bool {
        self.marked(cluster, ACTIVE)
    }

    /// Whether it says that nothing else does.
    pub(crate) fn is_copied(&self, cluster: u64) -> bool {
        self.marked(cluster, IS_COPIED)
    }

    fn marked(&self, cluster: u64, mark: u8) -> bool {
        let at = usize::try_from(cluster).ok();
        at.and_then(|at| self.marks.get(at))
            .is_some_and(|marks| marks & mark != 0)
    }
}

fn copied(entry: u64, marks: u8) -> u8 {
    if marks != 0 && entry & COPIED != 0 {
        IS_COPIED
    } else {
        0
    }
}
