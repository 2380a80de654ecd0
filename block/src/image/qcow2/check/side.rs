//! What lies in an image beside the disk: internal snapshots and bitmaps.

use super::super::entry;
use super::super::header::Place;
use super::{Header, References, read_at};
use crate::{RawImage, Result};

/// Fixed fields of a snapshot in the list.
const SNAPSHOT: usize = 40;
/// Fixed fields of a bitmap in the list.
const BITMAP: usize = 24;
/// Longest list that is read.
const MAX_LIST: u64 = 64 << 20;
/// Most entries of an L1 table of a snapshot, and of the table of a bitmap (QEMU's limits).
const MAX_L1: u32 = (32 << 20) / 8;
const MAX_BITMAP_TABLE: u32 = 1 << 20;

/// Adds what they reference.
pub(super) fn add(references: &mut References, file: &RawImage, header: &Header) -> Result<()> {
    add_snapshots(references, file, header)?;
    add_bitmaps(references, file, header)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    field.map_or(0, u32::from_be_bytes)
}

fn half(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at) >> 16)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

fn add_snapshots(references: &mut References, file: &RawImage, header: &Header) -> Result<()> {
    let mut len = 0_u64;
    for _ in 0..header.snapshots {
        let mut fields = [0; SNAPSHOT];
        read_at(
            file,
            header.snapshots_offset.saturating_add(len),
            &mut fields,
        )?;
        let l1 = Place {
            offset: long(&fields, 0),
            len: u64::from(word(&fields, 8).min(MAX_L1)) * 8,
        };
        references.add_l1(file, "L1 table of a snapshot", l1, 0)?;
        let names = half(&fields, 12) + half(&fields, 14);
        let entry = SNAPSHOT as u64 + u64::from(word(&fields, 36)) + names;
        len = (len + entry).next_multiple_of(8);
        if len > MAX_LIST {
            references
                .errors
                .add(|| format!("the list of snapshots is longer than {MAX_LIST} bytes"));
            break;
        }
    }
    if header.snapshots > 0 {
        let offset = header.snapshots_offset;
        references.add("list of snapshots", Place { offset, len }, 0);
    }
    Ok(())
}

fn add_bitmaps(references: &mut References, file: &RawImage, header: &Header) -> Result<()> {
    let Some(bitmaps) = header.bitmaps else {
        return Ok(());
    };
    let place = bitmaps.directory;
    references.add("list of bitmaps", place, 0);
    let mut at = 0;
    for _ in 0..bitmaps.count {
        if at + BITMAP as u64 > place.len.min(MAX_LIST) {
            references
                .errors
                .add(|| "the list of bitmaps ends too early".into());
            break;
        }
        let mut fields = [0; BITMAP];
        read_at(file, place.offset + at, &mut fields)?;
        let table = Place {
            offset: long(&fields, 0),
            len: u64::from(word(&fields, 8).min(MAX_BITMAP_TABLE)) * 8,
        };
        if references.add("table of a bitmap", table, 0) {
            let bytes = references.read(file, table)?;
            for entry in entry::entries(&bytes) {
                let offset = entry::l2_table(entry);
                if offset != 0 {
                    references.add_cluster("bitmap", offset, 0);
                }
            }
        }
        let entry = BITMAP as u64 + half(&fields, 18) + u64::from(word(&fields, 20));
        at = (at + entry).next_multiple_of(8);
    }
    Ok(())
}
