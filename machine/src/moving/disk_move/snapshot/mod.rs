//! A disk that moves by way of overlays: its image stays as it is while it is copied, and its guest goes on in an overlay
//! over it, a qcow2 image. Then the overlay gets the copy below it, and what it holds is brought there while the guest goes
//! on in the next one, which gets the copy below it in turn; until so little is left that requests may wait for it.
//!
//! The image to which what is in overlays comes is their *base*: the old one, and once that is copied, the new one. A move
//! that comes to nothing makes the old one the base again, and goes over to it in the end.
//!
//! # Invariants
//! - From the first overlay on, until the move is given up, the old image never changes.
//! - The record names the image that is the disk ([`Standing`]), and by the base what else it may need; that one is whole,
//!   with those that its header leads to, whenever this process ends. What the record does not say to be needed may be
//!   removed: so it names the new image as the base before the first header leads there, and the old one again after the
//!   last header has left the new one.
//! - What is brought to the base lies in an overlay over it, up to the end of the round: nobody reads it there meanwhile.
//! - There are at most two overlays over the base, and the lower one does not change.

mod back;
pub(crate) mod files;
mod hops;
mod rounds;
mod space;
pub(crate) mod with_guest;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block::BlockDevice;
use block::copy::{Copy, CopyError, Figures, Patience, Steering, total};
use block::image::qcow2::Qcow2Image;
use block::room::Room;
use block::tracker::{ChangeMap, Generation};
use control::disk_move::{DiskMoveMode, DiskMoveReport, OverlayEnd};
use migration::journal::OverlayBase;

use self::files::OverlayFiles;
use self::rounds::{Round, next_round};
use super::standing::Standing;
use super::{DiskMove, MoveError};
use crate::disks::Disk;

/// How long rounds may bring nothing before the guest is slowed, and then before it is slowed more.
const IN_VAIN: Duration = Duration::from_secs(3);
/// Between two rounds of which the first brought nothing.
const REST: Duration = Duration::from_millis(20);
/// So much has to be copied for a rate that means something.
const MEASURED: u64 = 1 << 20;

/// The overlay that the guest goes on in.
struct Active {
    number: u8,
    disk: Arc<Disk>,
    image: Arc<Qcow2Image>,
    room: Arc<Room>,
}

/// The one below it, which is brought to the base.
struct Frozen {
    number: u8,
    image: Arc<Qcow2Image>,
}

/// A move on its way.
struct Course {
    this: Arc<DiskMove>,
    files: Arc<OverlayFiles>,
    old: Arc<Disk>,
    new: Arc<Disk>,
    to: String,
    base: OverlayBase,
    /// The base as it is recorded, which is also needed.
    recorded: OverlayBase,
    active: Option<Active>,
    below: Option<Frozen>,
    /// Where the new image is ahead of the old one.
    ahead: Vec<Range<u64>>,
    /// Bytes a second to which the guest is slowed.
    slowed: Option<u64>,
    /// There was no room for what the guest writes.
    full: Arc<AtomicBool>,
    /// What marks changes of what overlays hold, of a disk that goes with its guest; and what the last step has cut off.
    changes: Option<(Arc<ChangeMap>, Generation)>,
    report: DiskMoveReport,
}

impl DiskMove {
    /// Has the disk move from `old` by way of overlays: where it is then.
    pub(super) fn by_overlays(
        self: &Arc<Self>,
        old: &Arc<Disk>,
        new: &Arc<Disk>,
        files: &Arc<OverlayFiles>,
        report: &mut DiskMoveReport,
    ) -> Result<Arc<Disk>, MoveError> {
        report.mode = DiskMoveMode::Snapshot;
        let to = new.image().file().path().display().to_string();
        let mut course = Course::new(self, files, (old, new), to);
        course.report = std::mem::take(report);
        let moved = course.forward();
        let moved = moved.map_err(|why| course.back(why));
        if !matches!(moved, Err(MoveError::InOverlay { .. })) {
            course.give_space_back();
        }
        *report = course.report;
        moved
    }
}

/// A copy of what does not change meanwhile.
fn copy(from: Arc<dyn BlockDevice>, to: &Disk) -> Copy {
    let nothing = Arc::new(ChangeMap::new(from.size()));
    Copy::new(from, to.device(), nothing)
}

/// Has ranges that touch be one, so that there are no more than there are on the disk.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    *ranges = joined;
}

/// What was measured in the rounds before.
struct Measured {
    rate: f64,
    flush: Duration,
    in_vain: Option<Instant>,
}

impl Course {
    /// Nothing is done yet.
    fn new(
        this: &Arc<DiskMove>,
        files: &Arc<OverlayFiles>,
        (old, new): (&Arc<Disk>, &Arc<Disk>),
        to: String,
    ) -> Self {
        Self {
            this: this.clone(),
            files: files.clone(),
            old: old.clone(),
            new: new.clone(),
            to,
            base: OverlayBase::Old,
            recorded: OverlayBase::Old,
            active: None,
            below: None,
            ahead: Vec::new(),
            slowed: None,
            full: Arc::default(),
            changes: None,
            report: DiskMoveReport::default(),
        }
    }

    /// To the new image, or as far as it is to go.
    fn forward(&mut self) -> Result<Arc<Disk>, MoveError> {
        let steering = Arc::clone(&self.this.steering);
        let mut bulk = copy(self.old.device(), &self.new);
        self.report.allocated_bytes = bulk.allocated()?;
        self.forecast_space()?;
        self.next_overlay()?;
        steering.begin_pass(self.report.allocated_bytes, 0.0);
        let pass = bulk.all(self.this.content, &steering)?;
        let flush = bulk.flush()?;
        self.note_space();
        self.record_base(OverlayBase::New)?;
        self.base = OverlayBase::New;
        if self.files.end == OverlayEnd::Kept {
            while !steering.begin_end() {
                steering.rest(REST)?;
            }
            return self.keep();
        }
        self.next_overlay()?;
        let measured = Measured {
            rate: pass.bytes as f64 / pass.took.as_secs_f64().max(1e-6),
            flush,
            in_vain: None,
        };
        self.rounds(&steering, measured, Standing::New)
    }

    /// Brings what is in overlays to the base until that can be the disk, and makes it that.
    fn rounds(
        &mut self,
        steering: &Steering,
        mut measured: Measured,
        end: Standing,
    ) -> Result<Arc<Disk>, MoveError> {
        loop {
            let before = self.consolidate(steering, &mut measured)?;
            let left = self.left()?;
            let figures = Figures {
                left,
                before: before.unwrap_or(left),
                rate: measured.rate,
                fixed: measured.flush + self.this.record_cost,
            };
            let limit = steering.limit();
            if figures.is_in_vain() || figures.fixed > limit {
                measured.in_vain.get_or_insert_with(Instant::now);
            } else {
                measured.in_vain = None;
            }
            let in_vain = measured
                .in_vain
                .map_or(Duration::ZERO, |since| since.elapsed());
            let patience = Patience {
                limit,
                in_vain,
                most: IN_VAIN,
            };
            match next_round(&figures, patience, self.slowed) {
                Round::End { most } if steering.begin_end() => match self.arrive(most, end) {
                    Err(MoveError::Copy(CopyError::TooMuch { .. })) => {
                        self.report.retries += 1;
                        steering.give_back();
                    }
                    ended => return ended,
                },
                Round::Slow { to } => {
                    // By the next overlay, which the guest goes over to below.
                    tracing::info!(
                        bytes_per_s = to,
                        "the guest writes faster than its disk is moved, and is slowed"
                    );
                    self.slowed = Some(to);
                    self.report.slowed_to = to;
                    measured.in_vain = None;
                }
                Round::GiveUp => {
                    return Err(MoveError::NotConverging {
                        left,
                        forecast: figures.forecast(),
                        limit,
                    });
                }
                Round::End { .. } | Round::Next => {}
            }
            steering.rest(measured.in_vain.map_or(Duration::ZERO, |_| REST))?;
            self.next_overlay()?;
        }
    }

    /// Brings what the lower overlay holds to the base; how many bytes that were, if there is one.
    fn consolidate(
        &mut self,
        steering: &Steering,
        measured: &mut Measured,
    ) -> Result<Option<u64>, MoveError> {
        let Some(frozen) = &self.below else {
            return Ok(None);
        };
        let own = frozen.image.own_ranges().map_err(MoveError::Overlay)?;
        if self.base == OverlayBase::New {
            // Also where it fails in the middle.
            self.ahead.extend(own.iter().cloned());
            join(&mut self.ahead);
        }
        let bytes = total(&own);
        let mut copy = copy(frozen.image.clone(), self.base_disk());
        steering.begin_pass(bytes, 0.0);
        let pass = copy.ranges(&own, steering)?;
        measured.flush = copy.flush()?;
        // Of less only where nothing is known yet.
        if pass.bytes >= MEASURED || measured.rate == 0.0 {
            measured.rate = pass.bytes as f64 / pass.took.as_secs_f64().max(1e-6);
        }
        self.report.rounds += 1;
        self.note_space();
        Ok(Some(bytes))
    }

    /// Bytes that the guest's overlay holds.
    fn left(&self) -> Result<u64, MoveError> {
        let Some(active) = &self.active else {
            return Ok(0);
        };
        let own = active.image.own_ranges().map_err(MoveError::Overlay)?;
        Ok(total(&own))
    }

    fn base_disk(&self) -> &Arc<Disk> {
        match self.base {
            OverlayBase::Old => &self.old,
            OverlayBase::New => &self.new,
        }
    }

    fn note_space(&mut self) {
        self.report.overlay_bytes = self.report.overlay_bytes.max(self.files.taken());
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    /// Empties the overlays that nobody needs any more: whoever made them removes them, if it is there.
    fn give_space_back(&self) {
        let stays = self.this.machine.devices().disks.find(&self.old.id);
        self.empty_but(stays.map(|disk| disk.image().file().path().to_owned()));
    }

    /// The same of all: there is no guest any more.
    fn empty_all(&self) {
        self.empty_but(None);
    }

    fn empty_but(&self, stays: Option<PathBuf>) {
        for number in self.files.numbers() {
            let path = self.files.of(number).file.path().to_owned();
            if stays.as_deref() == Some(Path::new(&path)) {
                continue;
            }
            let (old, format) = (self.old.image().file().path(), self.old.image().format());
            if let Err(error) = self.files.empty(number, old.to_owned(), format) {
                tracing::warn!(%error, overlay = %path.display(), "an overlay that nobody needs keeps its space");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let mut ranges = vec![8..9, 0..2, 1..3, 3..4, 6..7, 6..7];
        join(&mut ranges);
        assert_eq!(ranges, [0..4, 6..7, 8..9]);
        join(&mut ranges);
        assert_eq!(ranges.len(), 3);
    }
}
