//! What was recorded, and the disk as it would be after a power cut.
//!
//! # The file
//! Records follow each other, of 40 bytes each and little-endian: kind, request, offset, length, content, 8 bytes
//! each; then so many bytes as content says. A request has two of them: that it began, with what it writes, and how it
//! ended. A recording may end anywhere, also within a record, of which nothing is known then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use crate::{BlockDevice, Buffer, Durability, Result, SECTOR_SIZE, ZeroMode};

/// Bytes of a record.
pub(super) const RECORD: usize = 40;
/// Longest content of one; longer ones are none.
const MAX_CONTENT: u64 = 1 << 30;

/// What a request asked for, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    WriteDurably,
    Zero,
    Discard,
    Flush,
    Done,
    /// It has ended without doing anything, as a discard may.
    Kept,
    Failed,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Write,
        Self::WriteDurably,
        Self::Zero,
        Self::Discard,
        Self::Flush,
        Self::Done,
        Self::Kept,
        Self::Failed,
    ];

    fn number(self) -> u64 {
        // The position of a variant without fields.
        self as u64
    }

    fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    const fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Kept | Self::Failed)
    }
}

/// One step of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Its request, counted from 0.
    pub(super) request: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes that follow.
    pub(super) content: u64,
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let words = [
            self.kind.number(),
            self.request,
            self.offset,
            self.len,
            self.content,
        ];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).map(|word| {
            let mut le = [0; 8];
            le.copy_from_slice(word);
            u64::from_le_bytes(le)
        });
        let mut next = || words.next();
        Some(Self {
            kind: Kind::of(next()?)?,
            request: next()?,
            offset: next()?,
            len: next()?,
            content: next()?,
        })
    }
}

/// A change of the disk, and the points at which it began and ended.
#[derive(Debug)]
struct Change {
    kind: Kind,
    offset: u64,
    len: u64,
    content: Vec<u8>,
    began: usize,
    /// When and how.
    ended: Option<(usize, Kind)>,
}

/// What happened to a disk, in order.
///
/// *Points* are the moments between two steps: point 0 is before the first, and each beginning and end of a request
/// comes with one more.
#[derive(Debug, Default)]
pub struct Recording {
    changes: Vec<Change>,
    /// Beginnings and ends of flushes that were confirmed.
    flushes: Vec<(usize, usize)>,
    points: usize,
}

impl Recording {
    /// Reads the file that a recorder has written, or still writes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::read(io::BufReader::new(File::open(path)?))
    }

    /// Reads a recording up to its end, or to where it is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(mut from: impl Read) -> io::Result<Self> {
        let mut recording = Self::default();
        let mut open = HashMap::new();
        let mut flushing = HashMap::new();
        let mut bytes = [0; RECORD];
        loop {
            match from.read_exact(&mut bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(recording),
                Err(error) => return Err(error),
            }
            let Some(record) = Record::from_bytes(&bytes) else {
                return Ok(recording);
            };
            if record.content > MAX_CONTENT {
                return Ok(recording);
            }
            let mut content = Vec::new();
            let found = from
                .by_ref()
                .take(record.content)
                .read_to_end(&mut content)?;
            if found as u64 != record.content {
                return Ok(recording);
            }
            recording.points += 1;
            let point = recording.points;
            match record.kind {
                Kind::Flush => {
                    flushing.insert(record.request, point);
                }
                kind if kind.is_end() => {
                    if let Some(change) = open.remove(&record.request) {
                        let change: &mut Change = &mut recording.changes[change];
                        change.ended = Some((point, kind));
                    } else if let Some(began) = flushing.remove(&record.request)
                        && kind == Kind::Done
                    {
                        recording.flushes.push((began, point));
                    }
                }
                kind => {
                    open.insert(record.request, recording.changes.len());
                    recording.changes.push(Change {
                        kind,
                        offset: record.offset,
                        len: record.len,
                        content,
                        began: point,
                        ended: None,
                    });
                }
            }
        }
    }

    /// The last point, when all that was recorded had happened.
    pub fn points(&self) -> usize {
        self.points
    }

    /// Makes `disk`, which holds what the recorded one held when the recording began, as that one could be found after
    /// a power cut at this point. What was durable is there; whether anything else is, is drawn for each sector from
    /// `seed`.
    ///
    /// # Errors
    /// When `disk` cannot be written.
    pub fn cut_power(&self, point: usize, seed: u64, disk: &dyn BlockDevice) -> Result<()> {
        let flushed = self.flushes.iter().filter(|(_, ended)| *ended <= point);
        // Everything that had ended before is durable.
        let durable_before = flushed.map(|(began, _)| *began).max().unwrap_or(0);
        let changes = self.changes.iter().enumerate();
        for (index, change) in changes.filter(|(_, change)| change.began <= point) {
            let ended = change.ended.filter(|(ended, _)| *ended <= point);
            let is_durable = match ended {
                Some((_, Kind::Kept)) => continue,
                Some((ended, Kind::Done)) => {
                    ended < durable_before || change.kind == Kind::WriteDurably
                }
                // Failed, or under way: no flush promises anything of it.
                _ => false,
            };
            if is_durable {
                change.replay(disk, 0..change.len)?;
                continue;
            }
            for part in change.sectors() {
                if draw(seed, index as u64, change.offset + part.start) {
                    change.replay(disk, part)?;
                }
            }
        }
        disk.flush()
    }
}

impl Change {
    /// Its bytes by the sectors that they lie in, counted from its own first.
    fn sectors(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (offset, len) = (self.offset, self.len);
        let mut next = 0;
        std::iter::from_fn(move || {
            let from = next;
            let rest = SECTOR_SIZE - offset.wrapping_add(from) % SECTOR_SIZE;
            next = len.min(from + rest);
            (from < len).then_some(from..next)
        })
    }

    /// Does to `disk` again what it did to a part of its bytes.
    fn replay(&self, disk: &dyn BlockDevice, part: Range<u64>) -> Result<()> {
        let (at, len) = (
            self.offset.saturating_add(part.start),
            part.end - part.start,
        );
        match self.kind {
            Kind::Write | Kind::WriteDurably => {
                // As long as the change, unless somebody else wrote the recording.
                let bytes = usize::try_from(part.start)
                    .ok()
                    .zip(usize::try_from(part.end).ok());
                let bytes = bytes.and_then(|(from, to)| self.content.get(from..to));
                let mut bytes = bytes.unwrap_or_default().to_vec();
                disk.write(&[Buffer::new(&mut bytes)], at, Durability::Flushed)
            }
            _ => disk.write_zeroes(at, len, ZeroMode::MayUnmap),
        }
    }
}

/// Whether a sector of a change has reached the medium, by chance; the same for the same numbers (SplitMix64 of Steele,
/// Lea and Flood, 2014).
fn draw(seed: u64, change: u64, byte: u64) -> bool {
    let mut state = seed;
    for number in [change, byte / SECTOR_SIZE] {
        state = state
            .wrapping_add(number)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state & 1 == 1
}
