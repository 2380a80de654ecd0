//! Copying beside a mirror, which changes the target as the disk is changed.
//!
//! The mirror keeps changes away from each piece while it is read and written, and says when it is the turn of the
//! copy ([`crate::mirror`], invariant 1). A pass that stops goes on where it was.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Copy, CopyError, Pass, Standing, Steering, Stopped, Target};
use crate::ExtentKind;
use crate::mirror::{Held, Mirror};
use crate::tracker::Generation;

/// Bytes that are copied at once: a change of them, and others at the same storage, wait for so many.
const PIECE: u64 = 256 << 10;
/// Bytes that are made zeroes at once.
const ZEROES: u64 = 64 << 20;
/// The target is flushed when so many bytes are not durable there: a flush of the guest's has to wait for no more.
const UNFLUSHED: u64 = 16 << 20;
/// How often a copy that has to wait looks whether the mirror still stands.
const LOOK: Duration = Duration::from_millis(100);

impl Copy {
    /// Goes on to the same target by way of a mirror.
    pub fn go_by(&mut self, mirror: &Mirror) {
        self.target = mirror.background();
    }

    /// As [`Copy::all`], beside `mirror`. After a failure it goes on where it was.
    ///
    /// # Errors
    /// As there; and what the target did for which the mirror has given it up.
    pub fn all_beside(
        &mut self,
        target: Target,
        mirror: &Mirror,
        steering: &Steering,
    ) -> Result<Pass, CopyError> {
        let whole = 0..self.source.size();
        self.beside(target, mirror, steering, |from| {
            std::iter::once(from..whole.end)
        })
    }

    /// As [`Copy::changed`], beside `mirror`. After a failure it goes on where it was.
    ///
    /// # Errors
    /// As [`Copy::all_beside`].
    pub fn changed_beside(
        &mut self,
        mirror: &Mirror,
        steering: &Steering,
    ) -> Result<Pass, CopyError> {
        let (changes, since) = (Arc::clone(&self.changes), self.since);
        self.beside(Target::Holds, mirror, steering, |from| {
            changes.changed_since(since).from(from)
        })
    }

    /// Forgets what was copied: the target may hold anything.
    pub fn forget(&mut self) {
        self.since = Generation::FIRST;
        self.stopped = None;
    }

    fn beside<R: Iterator<Item = Range<u64>>>(
        &mut self,
        target: Target,
        mirror: &Mirror,
        steering: &Steering,
        ranges: impl FnOnce(u64) -> R,
    ) -> Result<Pass, CopyError> {
        let began = Instant::now();
        let mut stopped = self.stopped.take().unwrap_or_else(|| Stopped {
            begun: self.changes.begin_generation(),
            reached: 0,
        });
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(PIECE as usize, 0);
        let walk = Walk {
            copy: self,
            target,
            mirror,
            steering,
        };
        let (mut bytes, mut copied) = (0, Ok(()));
        for range in ranges(stopped.reached) {
            let mut at = range.start.max(stopped.reached);
            while at < range.end && copied.is_ok() {
                copied = walk.step(at..range.end, &mut piece).map(|step| {
                    bytes += step.copied;
                    at = step.reached;
                    stopped.reached = at;
                });
            }
            if copied.is_err() {
                break;
            }
        }
        mirror.rest();
        self.piece = piece;
        if let Err(error) = copied {
            self.stopped = Some(stopped);
            return Err(error);
        }
        self.since = stopped.begun;
        let took = began.elapsed();
        Ok(Pass { bytes, took })
    }
}

/// A pass beside a mirror.
struct Walk<'w> {
    copy: &'w Copy,
    target: Target,
    mirror: &'w Mirror,
    steering: &'w Steering,
}

struct Stepped {
    /// All before this byte is done.
    reached: u64,
    copied: u64,
}

impl Walk<'_> {
    /// Does what comes first in `range`.
    fn step(&self, range: Range<u64>, piece: &mut [u8]) -> Result<Stepped, CopyError> {
        let at = range.start;
        let first = self.first(range)?;
        if first.1 == ExtentKind::Zero && self.target == Target::Blank {
            // Nothing was here when the target was new, and what has come since has been mirrored.
            self.check()?;
            return Ok(Stepped {
                reached: first.0,
                copied: 0,
            });
        }
        if first.1 != ExtentKind::Zero {
            let end = end_of_piece(at, first.0);
            self.take(end - at)?;
            let held = self.hold(at..end)?;
            return self.copy(at..end, piece, held);
        }
        let most = at..first.0.min(at.saturating_add(ZEROES));
        let held = self.hold(most.clone())?;
        // It may have become another since.
        let (end, kind) = self.first(most)?;
        if kind != ExtentKind::Zero {
            return self.copy(at..end_of_piece(at, end), piece, held);
        }
        self.copy.zero(at..end, self.target)?;
        held.zeroed(PIECE);
        Ok(Stepped {
            reached: end,
            copied: 0,
        })
    }

    fn copy(
        &self,
        range: Range<u64>,
        piece: &mut [u8],
        held: Held<'_>,
    ) -> Result<Stepped, CopyError> {
        let len = range.end - range.start;
        let piece = &mut piece[..len as usize];
        self.copy.copy_piece(range.start, piece, self.target)?;
        held.copied(len);
        self.steering.copied(len);
        if self.mirror.unflushed() > UNFLUSHED {
            self.mirror.flush_target().map_err(CopyError::Target)?;
        }
        Ok(Stepped {
            reached: range.end,
            copied: len,
        })
    }

    /// Where the first extent of `range` ends, and what it is.
    fn first(&self, range: Range<u64>) -> Result<(u64, ExtentKind), CopyError> {
        let len = range.end - range.start;
        let extents = self.copy.source.extents(range.start, len, 1);
        let first = extents.map_err(CopyError::Source)?.into_iter().next();
        // Whoever tells of nothing is taken to hold data.
        Ok(first.map_or((range.end, ExtentKind::Data), |extent| {
            let end = extent.offset.saturating_add(extent.len);
            (end.clamp(range.start + 1, range.end), extent.kind)
        }))
    }

    /// Waits until its user lets it copy so many bytes, for which no change waits.
    fn take(&self, bytes: u64) -> Result<(), CopyError> {
        if self.steering.take_within(bytes, Duration::ZERO)? {
            return Ok(());
        }
        self.mirror.rest();
        while !self.steering.take_within(bytes, LOOK)? {
            self.check()?;
        }
        Ok(())
    }

    fn hold(&self, piece: Range<u64>) -> Result<Held<'_>, CopyError> {
        let is_wanted = || self.steering.standing() != Standing::Cancelled;
        match self.mirror.hold(piece, is_wanted) {
            Some(held) => Ok(held),
            None => {
                self.check()?;
                Err(CopyError::Cancelled)
            }
        }
    }

    /// That it is not cancelled, and the mirror stands.
    fn check(&self) -> Result<(), CopyError> {
        if self.steering.standing() == Standing::Cancelled {
            return Err(CopyError::Cancelled);
        }
        match self.mirror.take_trouble() {
            Some(error) => Err(CopyError::Target(error)),
            None => Ok(()),
        }
    }
}

/// Pieces end at multiples of their size.
fn end_of_piece(at: u64, end: u64) -> u64 {
    end.min((at / PIECE + 1) * PIECE)
}
