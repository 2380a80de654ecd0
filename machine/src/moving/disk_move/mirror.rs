//! A disk that is mirrored: what is written goes to both images, and what it holds is copied beside that.
//!
//! So what is left only becomes less, and it comes to an end however much is written. The end waits for the new image to be
//! flushed, and what is not flushed there is bounded, by having the guest's requests wait.
//!
//! A new image that fails, or does not answer in time, is given up by the layer at once, and the guest goes on with the old
//! one. Then the move fails; or it is paused, and when it is told to go on it copies what the image misses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::copy::{Copy, CopyError, Standing, Target};
use block::mirror::{Lost, Mirror};
use control::disk_move::{DiskMoveMode, DiskMoveReport, OnTargetError};

use super::{DiskMove, MoveError};
use crate::disks::Disk;
use crate::error::MachineError;

/// How long the new image's storage may take for anything before it is given up: so long a guest's request may wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long flushes may take longer than requests may wait before the move is given up.
const IN_VAIN: Duration = Duration::from_secs(10);
/// What may be written and not flushed at the end, where a flush takes no longer than it may; and where it does.
const MOST_UNFLUSHED: u64 = 16 << 20;
const LEAST_UNFLUSHED: u64 = 1 << 20;

/// A disk with a mirror, and its copy.
struct Mirrored {
    mirror: Arc<Mirror>,
    copy: Copy,
    /// What the new image holds, as long as not all of the disk was copied to it.
    whole: Option<Target>,
}

impl Drop for Mirrored {
    fn drop(&mut self) {
        // Also by a panic: the guest is not held up by a copy that there is no more.
        self.mirror.suspend();
        self.mirror.rest();
    }
}

impl DiskMove {
    /// Has `old` mirrored at `next` until that is the disk.
    pub(super) fn by_mirror(
        &self,
        old: &Disk,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let before = old.device();
        let mirror = self.mirror(next, report)?;
        let devices = self.machine.devices();
        let changes = devices.disks.changes(&next.id);
        let changes = changes.ok_or_else(|| MachineError::NoDisk {
            id: next.id.clone(),
        })?;
        let copy = Copy::new(before, next.target(), changes);
        report.allocated_bytes = copy.allocated()?;
        self.steering.begin_pass(report.allocated_bytes, 0.0);
        self.mirrored(mirror, copy, Some(self.content), next, to, report)
    }

    /// Goes on by a mirror with what passes have left.
    pub(super) fn go_on_by_mirror(
        &self,
        copy: Copy,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        tracing::info!(disk = %next.id, left = copy.left(), "the disk is written faster than it is copied, and is mirrored from here on");
        let mirror = self.mirror(next, report)?;
        self.mirrored(mirror, copy, None, next, to, report)
    }

    fn mirror(
        &self,
        next: &Disk,
        report: &mut DiskMoveReport,
    ) -> Result<Arc<Mirror>, MachineError> {
        let devices = self.machine.devices();
        let mirror = devices.mirror(&next.id, next.target(), PATIENCE, &self.writes)?;
        report.mode = DiskMoveMode::Mirror;
        self.told.mirrors(&mirror);
        Ok(mirror)
    }

    fn mirrored(
        &self,
        mirror: Arc<Mirror>,
        mut copy: Copy,
        whole: Option<Target>,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        copy.go_by(&mirror);
        let mut mirrored = Mirrored {
            mirror,
            copy,
            whole,
        };
        let moved = loop {
            match self.copy_beside_and_go_over(&mut mirrored, next, to, report) {
                Err(why)
                    if self.on_target_error == OnTargetError::Stop && why.is_of_new_image() =>
                {
                    if let Err(why) = self.stop(&mut mirrored, &why) {
                        break Err(why);
                    }
                }
                ended => break ended,
            }
        };
        self.told.mirrored(&mirrored.mirror);
        report.class_bytes.write = mirrored.mirror.written();
        moved
    }

    fn copy_beside_and_go_over(
        &self,
        mirrored: &mut Mirrored,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let steering = &*self.steering;
        let Mirrored {
            mirror,
            copy,
            whole,
        } = mirrored;
        if let Some(target) = *whole {
            copy.all_beside(target, mirror, steering)?;
            *whole = None;
        }
        let mut most = MOST_UNFLUSHED;
        let (mut is_first, mut in_vain): (bool, Option<Instant>) = (true, None);
        loop {
            let left = copy.left();
            if left > 0 {
                steering.begin_pass(left, 0.0);
                copy.changed_beside(mirror, steering)?;
            }
            mirror.bound_unflushed(Some(most));
            let fixed = mirror.flush_target().map_err(CopyError::Target)? + self.record_cost;
            let limit = steering.limit();
            // The first flush is of what was copied, and says nothing of the last.
            let is_slow = fixed > limit || is_first;
            if is_slow && !is_first {
                let since = *in_vain.get_or_insert_with(Instant::now);
                if since.elapsed() > IN_VAIN {
                    let forecast = fixed;
                    return Err(MoveError::SlowFlush { forecast, limit });
                }
                most = (most / 2).max(LEAST_UNFLUSHED);
            }
            is_first = false;
            if !is_slow && steering.begin_end() {
                let mut rest = || nothing_left(mirror, copy);
                match self.go_over(&mut rest, next, to, report) {
                    Err(MoveError::Copy(CopyError::TooMuch { .. })) => report.retries += 1,
                    ended => return ended,
                }
                steering.give_back();
            }
            if steering.standing() != Standing::Running {
                mirror.bound_unflushed(None);
                steering.await_running()?;
            }
        }
    }

    /// Is paused until its user says that it goes on, and the new image can.
    fn stop(&self, mirrored: &mut Mirrored, why: &MoveError) -> Result<(), MoveError> {
        let (mirror, steering) = (&mirrored.mirror, &*self.steering);
        mirror.suspend();
        mirror.bound_unflushed(None);
        steering.give_back();
        let told = why.observed();
        tracing::warn!(id = told.id, "the move of a disk is paused: {told}");
        self.told.set_held_up_by(Some(told));
        let lost = loop {
            if !steering.pause() {
                return Err(CopyError::Cancelled.into());
            }
            steering.await_running()?;
            // What is still under way there could come late.
            if let Some(lost) = mirror.resume() {
                break lost;
            }
        };
        self.told.set_held_up_by(None);
        // A flush past the mirror, at the end, is nothing that it knows of.
        let past_it = matches!(why, MoveError::Device(devices::Error::Flush { .. }));
        if lost == Lost::All || past_it {
            mirrored.copy.forget();
            mirrored.whole = Some(Target::Holds);
        }
        Ok(())
    }
}

/// That the new image holds what the disk does, with no request under way.
fn nothing_left(mirror: &Mirror, copy: &Copy) -> Result<u64, MoveError> {
    if let Some(error) = mirror.take_trouble() {
        return Err(CopyError::Target(error).into());
    }
    let left = copy.left();
    if left == 0 && mirror.is_whole() && mirror.is_quiet() {
        return Ok(0);
    }
    Err(CopyError::TooMuch { left, most: 0 }.into())
}
