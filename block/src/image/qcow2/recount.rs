//! Reference counts made anew from what leads where.
//!
//! An image says, by its dirty bit, that its user ended before the counts were written. All that they
//! tell follows from the tables, which are written in an order that keeps them right.

use std::io;

use super::chain::refused;
use super::check::{References, Width};
use super::header::{DIRTY, Header, INCOMPATIBLE};
use super::refusal::Refusal;
use crate::{BlockDevice, Buffer, Durability, RawImage, Result};

/// Where the header tells of the refcount table: offset, and length in clusters.
const REFCOUNT_TABLE: u64 = 48;

/// Makes the reference counts of an image without snapshots and bitmaps anew, and says in it that they are right.
///
/// It ends in the middle without harm: the old ones are used until the new ones are whole.
///
/// # Errors
/// When the tables contradict each other, so that no counts can be right; or it cannot be read or written.
pub(super) fn recount(file: &RawImage, header: &Header) -> Result<()> {
    let references = References::of(file, header)?;
    let width = Width::of(header);
    let damaged = |what: String| refused(file)(Refusal::Damaged(what));
    if let Some(first) = references.errors.told.first() {
        return Err(damaged(first.clone()));
    }
    let mut counts = Vec::with_capacity(references.len() as usize);
    for cluster in 0..references.len() {
        let count = references.count(cluster);
        // Only compressed data shares a cluster.
        if count > width.max() || (count > 1 && references.is_active(cluster)) {
            return Err(damaged(format!("cluster {cluster} has {count} uses")));
        }
        counts.push(count);
    }
    tracing::info!(image = %file.path().display(), "reference counts are made anew");
    write_counts(file, header, counts)?;
    write(
        file,
        &(header.incompatible & !DIRTY).to_be_bytes(),
        INCOMPATIBLE,
    )?;
    file.flush()
}

/// Writes reference counts behind the end of the file, and then has the header lead to them. Those of what is written
/// are added to `counts`, which are those of the file's clusters.
pub(super) fn write_counts(file: &RawImage, header: &Header, mut counts: Vec<u16>) -> Result<()> {
    let width = Width::of(header);
    let cluster = header.cluster();
    let first = counts.len() as u64;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (first + blocks + table).div_ceil(width.per_block());
        let needed_table = (needed * 8).div_ceil(cluster);
        if (needed, needed_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (needed, needed_table);
    }
    counts.resize((first + blocks + table) as usize, 1);
    let mut entries = Vec::with_capacity((table * cluster) as usize);
    let mut block = vec![0; cluster as usize];
    for (index, counts) in counts.chunks(width.per_block() as usize).enumerate() {
        block.fill(0);
        for (at, &count) in counts.iter().enumerate() {
            width.set(&mut block, at, count);
        }
        let offset = (first + index as u64) * cluster;
        write_new(file, &block, offset)?;
        entries.extend_from_slice(&offset.to_be_bytes());
    }
    entries.resize((table * cluster) as usize, 0);
    let offset = (first + blocks) * cluster;
    write_new(file, &entries, offset)?;
    file.flush()?;
    let mut lead = offset.to_be_bytes().to_vec();
    let table = u32::try_from(table)
        .map_err(|_| file.io_error("write", offset, table, io::ErrorKind::FileTooLarge.into()))?;
    lead.extend_from_slice(&table.to_be_bytes());
    write(file, &lead, REFCOUNT_TABLE)?;
    file.flush()
}

/// Writes to the file of an image, which becomes as long as that needs.
fn write(file: &RawImage, bytes: &[u8], offset: u64) -> Result<()> {
    let mut copy = bytes.to_vec();
    file.lengthen(offset.saturating_add(copy.len() as u64))?;
    file.write(&[Buffer::new(&mut copy)], offset, Durability::Flushed)
}

/// Writes behind the end of the file, where zeroes need not be written.
fn write_new(file: &RawImage, bytes: &[u8], offset: u64) -> Result<()> {
    let used = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    file.lengthen(offset.saturating_add(bytes.len() as u64))?;
    write(file, &bytes[..used], offset)
}
