//! Copying a disk to another image of this host while it is written: in passes, until little is left.
//!
//! # How it is used
//! The disk's changes are tracked ([`crate::tracker`]) from before the copy is made. [`Copy::all`] copies what the disk
//! holds, [`Copy::changed`] what was written since the pass before; [`convergence::next`] says when to stop. Then whoever
//! has the disk sees to it that no request is in flight, and [`Copy::rest`] copies what is left. When the target has been
//! flushed after that, it holds all that the disk does.
//!
//! Beside a [mirror](crate::mirror) it copies what that lacks ([`Copy::all_beside`], [`Copy::changed_beside`]): its changes are
//! then what the mirror has missed, and what was written elsewhere is not copied again.
//!
//! # Invariants
//! - A pass begins a generation before it reads anything, and the next one copies all that has changed since: so what was
//!   written while it was read, or after, is read again ([`crate::tracker`], invariants 2 and 3).
//! - The source is only read. Whatever fails, it is as if there had been no copy.
//! - What reads as zeroes is not stored at the target, so that it takes no more room than the source does, but for the
//!   size of its clusters.

mod beside;
mod convergence;
mod error;
mod steering;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use convergence::{Figures, Patience, Step, next};
pub use error::CopyError;
pub use steering::{Progress, Standing, Steering};

use crate::tracker::{BLOCK, ChangeMap, Generation};
use crate::{BlockDevice, Buffer, Durability, ExtentKind, ZeroMode};

/// Extents that are asked for at once.
const EXTENTS: usize = 256;
/// Bytes that are read and written at once.
const PIECE: u64 = 1 << 20;

/// A block of zeroes.
static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// What a target holds before anything is copied to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Zeroes.
    Blank,
    /// Anything.
    Holds,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Bytes that were read.
    pub bytes: u64,
    /// What it took, without the time for which it was told to wait.
    pub took: Duration,
}

/// A copy that is being made.
pub struct Copy {
    source: Arc<dyn BlockDevice>,
    target: Arc<dyn BlockDevice>,
    changes: Arc<ChangeMap>,
    /// What changed from here on is still to be copied.
    since: Generation,
    piece: Vec<u8>,
    /// A pass beside a mirror that has stopped before its end.
    stopped: Option<Stopped>,
}

/// Where a pass has stopped.
#[derive(Debug, Clone, Copy)]
struct Stopped {
    /// The generation that it began.
    begun: Generation,
    /// All before this byte is copied.
    reached: u64,
}

/// Who may hold a pass up.
#[derive(Clone, Copy)]
enum Pace<'s> {
    /// Its user.
    Steered(&'s Steering),
    /// Nobody: requests wait for it.
    Hurried,
}

impl Pace<'_> {
    /// Waits until so many bytes may be copied; how long.
    fn take(self, bytes: u64) -> Result<Duration, CopyError> {
        match self {
            Self::Steered(steering) => steering.take(bytes),
            Self::Hurried => Ok(Duration::ZERO),
        }
    }

    fn copied(self, bytes: u64) {
        if let Self::Steered(steering) = self {
            steering.copied(bytes);
        }
    }
}

impl Copy {
    /// A copy of `source` to `target`, which are of one size; `changes` is what has changed of `source` since before now.
    pub fn new(
        source: Arc<dyn BlockDevice>,
        target: Arc<dyn BlockDevice>,
        changes: Arc<ChangeMap>,
    ) -> Self {
        Self {
            source,
            target,
            changes,
            since: Generation::FIRST,
            piece: Vec::new(),
            stopped: None,
        }
    }

    /// Bytes that the disk holds, as far as its storage tells: what the first pass has to copy.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn allocated(&self) -> Result<u64, CopyError> {
        let mut bytes = 0;
        self.each_extent(0..self.source.size(), |_, range, kind| {
            if kind != ExtentKind::Zero {
                bytes += range.end - range.start;
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Copies all that the disk holds.
    ///
    /// # Errors
    /// When it cannot be read or written, or is cancelled.
    pub fn all(&mut self, target: Target, steering: &Steering) -> Result<Pass, CopyError> {
        let begun = self.changes.begin_generation();
        let whole = 0..self.source.size();
        let pass = self.pass([whole].into_iter(), target, Pace::Steered(steering))?;
        self.since = begun;
        Ok(pass)
    }

    /// Copies what was written since the last pass began.
    ///
    /// # Errors
    /// As [`Copy::all`].
    pub fn changed(&mut self, steering: &Steering) -> Result<Pass, CopyError> {
        let begun = self.changes.begin_generation();
        let changes = Arc::clone(&self.changes);
        let changed = changes.changed_since(self.since);
        let pass = self.pass(changed, Target::Holds, Pace::Steered(steering))?;
        self.since = begun;
        Ok(pass)
    }

    /// Copies what is left, with no request in flight and none that begins; what was copied. At most `most` bytes.
    ///
    /// # Errors
    /// [`CopyError::TooMuch`] when there is more, before anything is copied; and when it cannot be read or written.
    pub fn rest(&mut self, most: u64) -> Result<Pass, CopyError> {
        let left = self.left();
        if left > most {
            return Err(CopyError::TooMuch { left, most });
        }
        // No generation is begun: should what comes after this fail, the next pass copies all of it again.
        let changes = Arc::clone(&self.changes);
        let changed = changes.changed_since(self.since);
        self.pass(changed, Target::Holds, Pace::Hurried)
    }

    /// Copies `ranges`, which nobody writes meanwhile.
    ///
    /// # Errors
    /// As [`Copy::all`].
    pub fn ranges(
        &mut self,
        ranges: &[Range<u64>],
        steering: &Steering,
    ) -> Result<Pass, CopyError> {
        let ranges = ranges.iter().cloned();
        self.pass(ranges, Target::Holds, Pace::Steered(steering))
    }

    /// As [`Copy::ranges`], while requests wait and nobody may hold it up: at most `most` bytes.
    ///
    /// # Errors
    /// [`CopyError::TooMuch`] when it is more, before anything is copied; and when it cannot be read or written.
    pub fn last_ranges(&mut self, ranges: &[Range<u64>], most: u64) -> Result<Pass, CopyError> {
        let left = total(ranges);
        if left > most {
            return Err(CopyError::TooMuch { left, most });
        }
        self.pass(ranges.iter().cloned(), Target::Holds, Pace::Hurried)
    }

    /// Bytes of the blocks that were written since the last pass began.
    pub fn left(&self) -> u64 {
        let changed = self.changes.changed_since(self.since);
        changed.map(|range| range.end - range.start).sum()
    }

    /// Makes durable what was copied; what it took.
    ///
    /// # Errors
    /// When the target's storage does not confirm it.
    pub fn flush(&self) -> Result<Duration, CopyError> {
        let began = Instant::now();
        self.target.flush().map_err(CopyError::Target)?;
        Ok(began.elapsed())
    }

    fn pass(
        &mut self,
        ranges: impl Iterator<Item = Range<u64>>,
        target: Target,
        pace: Pace<'_>,
    ) -> Result<Pass, CopyError> {
        let began = Instant::now();
        let (mut bytes, mut waited) = (0, Duration::ZERO);
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(PIECE as usize, 0);
        let mut copied = Ok(());
        for range in ranges {
            copied = self.each_extent(range, |copy, range, kind| {
                if kind == ExtentKind::Zero {
                    return copy.zero(range, target);
                }
                let mut at = range.start;
                while at < range.end {
                    // To the next boundary, so that parts of pieces are whole blocks.
                    let end = range.end.min((at / PIECE + 1) * PIECE);
                    waited += pace.take(end - at)?;
                    copy.copy_piece(at, &mut piece[..(end - at) as usize], target)?;
                    pace.copied(end - at);
                    bytes += end - at;
                    at = end;
                }
                Ok(())
            });
            if copied.is_err() {
                break;
            }
        }
        self.piece = piece;
        copied?;
        let took = began.elapsed().saturating_sub(waited);
        Ok(Pass { bytes, took })
    }

    fn each_extent(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(&Self, Range<u64>, ExtentKind) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let mut at = range.start;
        while at < range.end {
            let extents = self.source.extents(at, range.end - at, EXTENTS);
            let extents = extents.map_err(CopyError::Source)?;
            let before = at;
            for extent in extents {
                let end = (extent.offset + extent.len).min(range.end);
                each(self, extent.offset.max(at)..end, extent.kind)?;
                at = at.max(end);
            }
            if at == before {
                // Whoever tells of nothing is taken to hold data.
                each(self, at..range.end, ExtentKind::Data)?;
                at = range.end;
            }
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>, target: Target) -> Result<(), CopyError> {
        if target == Target::Blank || range.is_empty() {
            return Ok(());
        }
        let len = range.end - range.start;
        let zeroed = self
            .target
            .write_zeroes(range.start, len, ZeroMode::MayUnmap);
        zeroed.map_err(CopyError::Target)
    }

    /// Copies a piece that lies in one extent; blocks of zeroes in it as such.
    fn copy_piece(&self, at: u64, piece: &mut [u8], target: Target) -> Result<(), CopyError> {
        let read = self.source.read(&[Buffer::new(piece)], at);
        read.map_err(CopyError::Source)?;
        let end = at + piece.len() as u64;
        let is_zero = |block: Range<u64>| {
            let bytes = &piece[(block.start - at) as usize..(block.end - at) as usize];
            // At most a block; compared as a whole, as that is what requests wait for at the end.
            bytes == &ZEROES[..bytes.len()]
        };
        let block = |from: u64| from..end.min((from / BLOCK + 1) * BLOCK);
        // Runs of blocks that are zeroes, and of those that are not.
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut from = at;
        while from < end {
            let range = block(from);
            let zero = is_zero(range.clone());
            from = range.end;
            match runs.last_mut() {
                Some((run, kind)) if *kind == zero => run.end = range.end,
                _ => runs.push((range, zero)),
            }
        }
        for (run, zero) in runs {
            if zero {
                self.zero(run, target)?;
                continue;
            }
            let bytes = &mut piece[(run.start - at) as usize..(run.end - at) as usize];
            let buffers = [Buffer::new(bytes)];
            let written = self.target.write(&buffers, run.start, Durability::Flushed);
            written.map_err(CopyError::Target)?;
        }
        Ok(())
    }
}

/// Bytes of all of `ranges`.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy")
            .field("source", &self.source.identity())
            .field("target", &self.target.identity())
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
