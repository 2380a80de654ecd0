//! From one image to the next: into another overlay, and out of the last one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::Stack;
use block::image::Image;
use block::image::qcow2::Qcow2Image;
use block::image::qcow2::overlay::{Lower, NewBelow};
use block::room::Room;
use block::throttle::{Limits, Throttle};
use block::tracker::Tracker;
use migration::journal::{Overlay, OverlayBase};

use super::{Active, Course, Frozen, MoveError, copy};
use crate::disks::Disk;
use crate::moving::disk_move::standing::Standing;
use crate::moving::disk_move::{Step, micros};
use crate::threads::{self, ThreadKind};

impl Course {
    /// Where the disk is, as it is recorded.
    fn standing(&self) -> Standing {
        match &self.active {
            None => Standing::Old,
            Some(active) => Standing::Overlay(self.recorded_in(active.number)),
        }
    }

    fn recorded_in(&self, number: u8) -> Overlay {
        Overlay {
            number,
            base: self.recorded,
        }
    }

    /// Records that overlays need `base`.
    pub(super) fn record_base(&mut self, base: OverlayBase) -> Result<(), MoveError> {
        let before = std::mem::replace(&mut self.recorded, base);
        let recorded = self.this.record(self.standing(), &self.to);
        recorded.map_err(|error| {
            self.recorded = before;
            error.into()
        })
    }

    /// Has the guest go on in the next overlay. The one that it was in does not change any more, and has the base below it.
    pub(super) fn next_overlay(&mut self) -> Result<(), MoveError> {
        let number = self.free_number();
        let current = self
            .active
            .as_ref()
            .map_or(&self.old, |active| &active.disk)
            .clone();
        let base = self.base_disk().image().clone();
        let file = current.image().file();
        let emptied = self
            .files
            .empty(number, file.path().to_owned(), current.image().format());
        emptied.map_err(MoveError::Overlay)?;
        let (mut frozen, mut name) = (None, None);
        if let Some(active) = &self.active {
            // Most of what is to be flushed, before requests wait for it.
            let flushed = active.disk.device().flush();
            flushed.map_err(MoveError::Overlay)?;
            let named = NewBelow::write(file, base.file().path(), base.format());
            name = Some(named.map_err(MoveError::Overlay)?);
            let image = Qcow2Image::over_opened(file.clone(), &base.lower());
            frozen = Some(Frozen {
                number: active.number,
                image: Arc::new(image.map_err(MoveError::Overlay)?),
            });
        }
        let lower = match &frozen {
            Some(frozen) => Lower::Qcow2(frozen.image.clone()),
            None => base.lower(),
        };
        let image = Qcow2Image::over_opened(self.files.of(number).file.clone(), &lower);
        let image = Arc::new(image.map_err(MoveError::Overlay)?);
        let (disk, room) = self.laid(number, &image)?;
        let changes = self.changes.clone();
        let mut cut = None;
        let mut rest = || {
            let begun = current.device().flush().and_then(|()| {
                name.take().map_or(Ok(()), NewBelow::lead)?;
                if let Some(frozen) = &frozen {
                    frozen.image.begin_use()?;
                }
                image.begin_use()
            });
            // No change is under way: what comes from here on is in the next overlay, and marked so.
            cut = changes.as_ref().map(|(map, _)| map.begin_generation());
            begun.map(|()| 0).map_err(MoveError::Overlay)
        };
        let becomes = Standing::Overlay(self.recorded_in(number));
        self.take(&mut rest, &disk, becomes)?;
        if let (Some((_, at)), Some(cut)) = (&mut self.changes, cut) {
            *at = cut;
        }
        self.below = frozen;
        self.active = Some(Active {
            number,
            disk,
            image,
            room,
        });
        Ok(())
    }

    /// Brings what is left, at most `most` bytes, to the base, which is the disk then.
    pub(super) fn arrive(&mut self, most: u64, end: Standing) -> Result<Arc<Disk>, MoveError> {
        let base = self.base_disk().clone();
        let image = self.active.as_ref().map(|active| active.image.clone());
        let mut rest = || {
            let Some(image) = &image else {
                return Ok(0);
            };
            let own = image.own_ranges().map_err(MoveError::Overlay)?;
            let copied = copy(image.clone(), &base).last_ranges(&own, most)?;
            Ok(copied.bytes)
        };
        self.take(&mut rest, &base, end)?;
        self.active = None;
        self.below = None;
        Ok(base)
    }

    /// Makes the old image the disk again, which holds all that the guest's overlay does: nothing is written there any more.
    pub(super) fn arrive_held(&mut self) -> Result<(), MoveError> {
        let old = self.old.clone();
        self.take(&mut || Ok(0), &old, Standing::Old)?;
        self.active = None;
        self.below = None;
        Ok(())
    }

    /// Has the guest's overlay be the disk for good, over the new image.
    pub(super) fn keep(&mut self) -> Result<Arc<Disk>, MoveError> {
        let Some(active) = &self.active else {
            return Ok(self.old.clone());
        };
        let (number, current) = (active.number, active.disk.clone());
        let flushed = current.device().flush();
        flushed.map_err(MoveError::Overlay)?;
        let (file, base) = (current.image().file(), self.new.image());
        let named = NewBelow::write(file, base.file().path(), base.format());
        let mut name = Some(named.map_err(MoveError::Overlay)?);
        let image = Qcow2Image::over_opened(file.clone(), &base.lower());
        let image = Arc::new(image.map_err(MoveError::Overlay)?);
        let claim = self.files.of(number).claim.clone();
        let kept = Image::Qcow2(image.clone());
        let disk = Disk::in_overlay(&self.old, kept, claim, Arc::new(()), |_| Ok(()))?;
        let disk = Arc::new(disk);
        let mut rest = || {
            let begun = current.device().flush().and_then(|()| {
                name.take().map_or(Ok(()), NewBelow::lead)?;
                image.begin_use()
            });
            begun.map(|()| 0).map_err(MoveError::Overlay)
        };
        let settled = Standing::Settled(self.recorded_in(number));
        self.take(&mut rest, &disk, settled)?;
        self.active = None;
        // The image below is shared with whoever reads it, as any below another.
        let shared = self
            .new
            .claim
            .release()
            .and_then(|()| image.claim_what_is_below());
        if let Err(error) = shared {
            tracing::warn!(%error, "nobody is kept from writing what lies below the disk");
        }
        Ok(disk)
    }

    fn take(
        &mut self,
        rest: &mut dyn FnMut() -> Result<u64, MoveError>,
        next: &Arc<Disk>,
        becomes: Standing,
    ) -> Result<(), MoveError> {
        let step = Step {
            to: &self.to,
            was: self.standing(),
            becomes,
        };
        let (stood, copied) = self.this.take_step(rest, next, step)?;
        let pause = micros(stood);
        self.report.pauses_us.push(pause);
        self.report.last_bytes = copied;
        self.report.io_pause_us = self.report.io_pause_us.max(pause);
        let at = next.image().file().path().display().to_string();
        tracing::info!(disk = %next.id, %at, us = pause, ?becomes, "the disk goes on elsewhere");
        Ok(())
    }

    /// A number that no overlay in the chain has.
    fn free_number(&self) -> u8 {
        let active = self.active.as_ref().map(|active| active.number);
        let below = self.below.as_ref().map(|below| below.number);
        let mut numbers = self.files.numbers();
        let free = numbers.find(|number| ![active, below].contains(&Some(*number)));
        // There is one more than a chain has.
        free.unwrap_or_default()
    }

    /// The disk as it goes on in overlay `number`, with what lies over that.
    fn laid(
        &self,
        number: u8,
        image: &Arc<Qcow2Image>,
    ) -> Result<(Arc<Disk>, Arc<Room>), MoveError> {
        let (full, steering) = (self.full.clone(), self.this.steering.clone());
        let on_full = Box::new(move || {
            full.store(true, Ordering::SeqCst);
            // One that is past its end has made room.
            steering.cancel();
        });
        let mut room = None;
        let keeps = Arc::new((self.files.clone(), self.old.clone(), self.new.clone()));
        let lay = |stack: &mut Stack| {
            room = Some(stack.lay(|image| Room::new(image, on_full)));
            if let Some(bytes) = self.slowed {
                let limits = Limits {
                    bytes: Some(bytes),
                    ..Limits::default()
                };
                let begin = || threads::begin(ThreadKind::Disk);
                stack.try_lay(|below| Throttle::new(below, limits, begin))?;
            }
            if let Some((changes, _)) = &self.changes {
                stack.lay(|below| Tracker::new(below, changes.clone()));
            }
            Ok(())
        };
        let claim = self.files.of(number).claim.clone();
        let image = Image::Qcow2(image.clone());
        let disk = Disk::in_overlay(&self.old, image, claim, keeps, lay)?;
        let room = room.ok_or(MoveError::Removed)?;
        Ok((Arc::new(disk), room))
    }
}
