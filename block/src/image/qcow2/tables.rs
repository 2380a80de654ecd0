//! The tables on which all others hang, looked at before they are used.

use super::entry;
use super::header::{Header, Place};
use super::refusal::Refusal;
use crate::{BlockDevice, Buffer, Error, RawImage, Result};

/// Reads bytes of a file, those behind its end as zeroes.
pub(super) fn read_at(file: &RawImage, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let there = file.size().saturating_sub(offset).min(bytes.len() as u64) as usize;
    bytes[there..].fill(0);
    if there == 0 {
        return Ok(());
    }
    file.read(&[Buffer::new(&mut bytes[..there])], offset)
}

/// The L1 table and the refcount table, of which every entry leads to a cluster of the file that has no
/// other use among them.
#[derive(Debug)]
pub(super) struct Tables {
    /// Offsets of L2 tables, one for each entry of the L1 table; 0 for none.
    pub(super) l2: Vec<u64>,
    /// Offsets of refcount blocks, one for each entry of the refcount table; 0 for none.
    pub(super) refcount_blocks: Vec<u64>,
}

impl Tables {
    /// Reads and checks them; they are as long as the header says, which is bounded.
    ///
    /// # Errors
    /// When they cannot be read, or overlap each other or the header, or lie outside of the file.
    pub(super) fn read(file: &RawImage, header: &Header) -> Result<Self> {
        let damaged = |what: String| Error::Qcow2 {
            path: file.path().to_owned(),
            why: Refusal::Damaged(what),
        };
        let l1 = read_table(file, header.l1, header.cluster())
            .map_err(|e| in_file(e, file, "L1 table"))?;
        let blocks = read_table(file, header.refcount_table, header.cluster())
            .map_err(|e| in_file(e, file, "refcount table"))?;
        let mut used = Used {
            cluster_bits: header.cluster_bits,
            end: file.size(),
            all: Vec::new(),
        };
        used.take("header", Place { offset: 0, len: 1 });
        used.take("L1 table", header.l1);
        used.take("refcount table", header.refcount_table);
        for (index, block) in entry::entries(&blocks).enumerate() {
            if block != 0 {
                used.cluster("refcount block", index, block)
                    .map_err(damaged)?;
            }
        }
        let mut l2 = Vec::with_capacity(l1.len() / 8);
        for (index, entry) in entry::entries(&l1).enumerate() {
            let table = entry::l2_table(entry);
            if !entry::is_l1(entry) {
                return Err(damaged(format!(
                    "entry {index} of its L1 table is {entry:#x}"
                )));
            }
            // Those of snapshots may be shared, and are not looked at here.
            if table != 0 {
                used.cluster("L2 table", index, table).map_err(damaged)?;
            }
            l2.push(table);
        }
        used.check().map_err(damaged)?;
        Ok(Self {
            l2,
            refcount_blocks: entry::entries(&blocks).collect(),
        })
    }
}

fn in_file(error: Error, file: &RawImage, what: &str) -> Error {
    match error {
        Error::OutOfRange { .. } => Error::Qcow2 {
            path: file.path().to_owned(),
            why: Refusal::Damaged(format!("its {what} ends behind the end of the file")),
        },
        error => error,
    }
}

fn read_table(file: &RawImage, place: Place, cluster: u64) -> Result<Vec<u8>> {
    // The last table of a file may end in the middle of its cluster.
    if place.offset + place.len > file.size().next_multiple_of(cluster) {
        return Err(Error::OutOfRange {
            path: file.path().to_owned(),
            offset: place.offset,
            len: place.len,
            size: file.size(),
        });
    }
    let mut bytes = vec![0; place.len as usize];
    read_at(file, place.offset, &mut bytes)?;
    Ok(bytes)
}

/// Which clusters are used, by what.
struct Used {
    cluster_bits: u32,
    end: u64,
    all: Vec<(u64, &'static str)>,
}

impl Used {
    fn take(&mut self, what: &'static str, place: Place) {
        let last = place.offset + place.len.saturating_sub(1);
        let clusters = place.offset >> self.cluster_bits..=last >> self.cluster_bits;
        self.all.extend(clusters.map(|cluster| (cluster, what)));
    }

    fn cluster(
        &mut self,
        what: &'static str,
        index: usize,
        offset: u64,
    ) -> std::result::Result<(), String> {
        let len = 1_u64 << self.cluster_bits;
        if !offset.is_multiple_of(len) || offset >= self.end {
            return Err(format!("{what} {index} lies at {offset:#x}"));
        }
        self.take(what, Place { offset, len });
        Ok(())
    }

    /// Whether each cluster has one use.
    fn check(mut self) -> std::result::Result<(), String> {
        self.all.sort_unstable();
        let mut pairs = self.all.windows(2);
        match pairs.find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => {
                let (one, other, at) = (pair[0].1, pair[1].1, pair[0].0 << self.cluster_bits);
                Err(format!("its {one} and its {other} overlap at {at:#x}"))
            }
        }
    }
}
