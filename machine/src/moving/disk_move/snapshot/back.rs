//! Back to the image that the disk had before, when a move by way of overlays comes to nothing.

use std::thread;
use std::time::Duration;

use block::BlockDevice;
use block::copy::{CopyError, Steering};
use control::disk_move::DOWNTIME_LIMIT;
use migration::journal::OverlayBase;

use super::{Course, Measured, MoveError, copy};
use crate::moving::disk_move::standing::Standing;

/// Between two tries to write to storage that is full.
const RETRY: Duration = Duration::from_millis(500);

impl Course {
    /// Goes back, as the move failed because of `why`; what is told of it.
    pub(super) fn back(&mut self, why: MoveError) -> MoveError {
        let Some(active) = &self.active else {
            return why;
        };
        let overlay = active.disk.image().file().path().to_owned();
        let why = match why {
            MoveError::Copy(CopyError::Cancelled) | MoveError::Overlay(_) if self.is_full() => {
                MoveError::OverlayFull {
                    path: overlay.clone(),
                }
            }
            why => why,
        };
        tracing::info!(%why, "what is in overlays is brought back");
        match self.go_back() {
            Ok(()) => why,
            Err(source) => {
                if let Some(active) = &self.active {
                    active.room.give_up();
                }
                tracing::error!(%source, overlay = %overlay.display(), "the disk stays in an overlay");
                MoveError::InOverlay {
                    overlay,
                    source: Box::new(source),
                }
            }
        }
    }

    fn go_back(&mut self) -> Result<(), MoveError> {
        // Nobody stops it, or slows it. A limit that no storage keeps would have what is written wait for all of it.
        let limit = self.this.steering.limit().max(DOWNTIME_LIMIT);
        let steering = Steering::new(None, limit);
        if !self.is_full() {
            match self.go_back_beside_guest(&steering) {
                Ok(()) => return Ok(()),
                Err(why) => {
                    tracing::warn!(%why, "what the guest writes waits until its disk is back");
                }
            }
        }
        self.go_back_held(&steering)
    }

    /// While the guest goes on.
    fn go_back_beside_guest(&mut self, steering: &Steering) -> Result<(), MoveError> {
        if self.base == OverlayBase::New {
            self.bring_old_up_to_base(steering)?;
            self.base = OverlayBase::Old;
            // The last header that leads to the new image is that of the one which is left.
            self.next_overlay()?;
            self.record_base(OverlayBase::Old)?;
            self.ahead.clear();
        }
        let measured = Measured {
            rate: 0.0,
            flush: self.old_flushed()?,
            in_vain: None,
        };
        self.rounds(steering, measured, Standing::Old).map(drop)
    }

    /// Has the old image hold what lies below the guest's overlay.
    fn bring_old_up_to_base(&mut self, steering: &Steering) -> Result<(), MoveError> {
        let (from, mut ranges): (std::sync::Arc<dyn BlockDevice>, _) = match &self.below {
            Some(frozen) => {
                let own = frozen.image.own_ranges().map_err(MoveError::Overlay)?;
                (frozen.image.clone(), own)
            }
            None => (self.new.device(), Vec::new()),
        };
        ranges.extend(self.ahead.iter().cloned());
        let mut copy = copy(from, &self.old);
        copy.ranges(&ranges, steering)?;
        copy.flush()?;
        Ok(())
    }

    fn old_flushed(&self) -> Result<Duration, MoveError> {
        Ok(copy(self.new.device(), &self.old).flush()?)
    }

    /// While what the guest writes waits: there is no room for it but in the old image.
    fn go_back_held(&mut self, steering: &Steering) -> Result<(), MoveError> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        active.room.hold();
        let mut ranges = active.image.own_ranges().map_err(MoveError::Overlay)?;
        if let Some(frozen) = &self.below {
            ranges.extend(frozen.image.own_ranges().map_err(MoveError::Overlay)?);
        }
        ranges.extend(self.ahead.iter().cloned());
        let mut copy = copy(active.disk.device(), &self.old);
        loop {
            let copied = copy.ranges(&ranges, steering);
            match copied.and_then(|_| copy.flush()) {
                // Until somebody makes room.
                Err(CopyError::Target(error)) if error.is_no_room() => {
                    if self.this.machine.ended() {
                        return Err(CopyError::Target(error).into());
                    }
                    tracing::warn!(%error, "the guest's writes wait for room");
                    thread::sleep(RETRY);
                }
                copied => break copied.map(drop)?,
            }
        }
        self.arrive_held()
    }
}
