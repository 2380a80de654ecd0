//! Zeroes, and giving space back: what is no longer needed becomes a hole of the file.
//!
//! A cluster of the disk keeps its place in the file, so that no table changes and no other cluster can come to lie
//! there: what was freed must not be used again before it is durable that nothing leads to it, or a power cut would
//! show one cluster in the place of another. imago would use it again at once.

use std::cmp;
use std::ops::Range;

use imago::{Mapping, ShallowMapping};

use super::chain::refused;
use super::disk::{Qcow2Image, Used};
use super::refusal::Refusal;
use crate::{BlockDevice, Result, ZeroMode};

/// What a part of a cluster is, as far as giving it up is concerned.
enum Part {
    /// It reads as zeroes.
    Zero,
    /// Here in the file, in a cluster that has no other use.
    Here(u64),
    /// Elsewhere.
    Elsewhere,
}

/// A range in clusters and parts of them.
struct Pieces {
    head: Range<u64>,
    whole: Range<u64>,
    tail: Range<u64>,
}

impl Qcow2Image {
    /// Makes a range that is not empty read as zeroes, as `mode` says.
    pub(super) fn zero(
        &self,
        used: &Used,
        operation: &'static str,
        range: Range<u64>,
        mode: ZeroMode,
    ) -> Result<()> {
        // Alone: what a cluster is, is asked before it is changed.
        let _alone = used.alone();
        let Pieces { head, whole, tail } = self.pieces(range.start, range.end);
        self.zero_parts(used, operation, head, mode)?;
        self.zero_clusters(used, operation, whole, mode)?;
        self.zero_parts(used, operation, tail, mode)
    }

    fn pieces(&self, offset: u64, end: u64) -> Pieces {
        let cluster = self.header().cluster();
        let first = offset.next_multiple_of(cluster);
        // The last cluster of a disk may be a part of one.
        let last = if end == self.size() {
            end
        } else {
            end - end % cluster
        };
        if first >= last {
            return Pieces {
                head: offset..end,
                whole: end..end,
                tail: end..end,
            };
        }
        Pieces {
            head: offset..first,
            whole: first..last,
            tail: last..end,
        }
    }

    /// Zeroes parts of clusters, of which other parts stay. imago is not asked: it takes part of a cluster at the end of
    /// a disk for a whole one (0.2.6, `soft_ensure_zero`).
    fn zero_parts(
        &self,
        used: &Used,
        operation: &'static str,
        range: Range<u64>,
        mode: ZeroMode,
    ) -> Result<()> {
        self.zero_each(used, operation, range, mode, |at, len| {
            self.write_zeroes_over(used, operation, at, len)
        })
    }

    /// Whole clusters. Those that lie in the file stay where they are; the others become clusters of zeroes.
    fn zero_clusters(
        &self,
        used: &Used,
        operation: &'static str,
        range: Range<u64>,
        mode: ZeroMode,
    ) -> Result<()> {
        self.zero_each(used, operation, range, mode, |at, len| {
            let zeroed = used.disk.write_zeroes(at, len);
            zeroed.map_err(self.failed(operation, at, len))
        })
    }

    /// What lies in the file in place; `elsewhere` zeroes what comes from elsewhere, by offset and length.
    fn zero_each(
        &self,
        used: &Used,
        operation: &'static str,
        range: Range<u64>,
        mode: ZeroMode,
        elsewhere: impl Fn(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (part, len) = self.part(used, operation, at, range.end - at)?;
            match part {
                Part::Zero => {}
                Part::Here(place) => self.zero_in_file(place, len, mode)?,
                Part::Elsewhere => elsewhere(at, len)?,
            }
            at += len;
        }
        Ok(())
    }

    /// Writes zeroes, less than a cluster of them, over what comes from elsewhere.
    fn write_zeroes_over(
        &self,
        used: &Used,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let failed = self.failed(operation, at, len - done);
            let (mapping, found) = used.disk.get_mapping(at, len - done).map_err(&failed)?;
            let piece = match mapping {
                Mapping::Zero { .. } if found > 0 => found,
                _ => {
                    let piece = (len - done).min(ZEROES.len() as u64);
                    // At most the length of the array.
                    let zeroes = &ZEROES[..piece as usize];
                    used.disk.write(zeroes, at).map_err(&failed)?;
                    piece
                }
            };
            done += piece;
        }
        Ok(())
    }

    fn part(&self, used: &Used, operation: &'static str, at: u64, len: u64) -> Result<(Part, u64)> {
        let failed = self.failed(operation, at, len);
        let (mapping, found) = used.disk.get_shallow_mapping(at, len).map_err(&failed)?;
        let part = match mapping {
            ShallowMapping::Zero { .. } | ShallowMapping::Eof { .. } => Part::Zero,
            ShallowMapping::Raw {
                offset,
                writable: true,
                ..
            } => Part::Here(offset),
            _ => Part::Elsewhere,
        };
        // Nothing is found only at the end of the disk.
        Ok((
            part,
            if found == 0 {
                len
            } else {
                cmp::min(found, len)
            },
        ))
    }

    /// Makes a stretch of the file zero; a hole, if it may be.
    fn zero_in_file(&self, place: u64, len: u64, mode: ZeroMode) -> Result<()> {
        if place < self.header().cluster() {
            let why = Refusal::Damaged("a part of the disk lies in its header".into());
            return Err(refused(&self.file)(why));
        }
        let len = len.min(self.file.size().saturating_sub(place));
        if len == 0 {
            return Ok(());
        }
        let zero = || self.file.zero(place, len, mode);
        self.file.change_at(place, len, zero)
    }
}
