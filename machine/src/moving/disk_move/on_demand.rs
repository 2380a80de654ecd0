//! A disk that goes over before its content does: the new image lacks what the old one holds, and reads it from there.
//!
//! Until it goes over nothing is copied, but what was written where the old image held nothing when it was looked at: that is
//! read as zeroes of the new one otherwise. From then on both images are the disk, the old one is only read, and neither a
//! cancel nor a failure leads back.

use std::sync::Arc;
use std::time::Duration;

use block::copy::{CopyError, Standing, Steering};
use block::on_demand::{
    About, Allocation, BLOCK, ImageOrigin, OnDemand, Origin, Policy, PresenceMap, Pull,
};
use block::tracker::{ChangeMap, Generation};
use block::{BlockDevice, Buffer, Durability, Stack};
use control::disk_move::{DiskMoveMode, DiskMoveReport, DiskPull};

use super::{DiskMove, MoveError};
use crate::disks::Disk;
use crate::disks::in_part::Note;
use crate::disks::pivots::PATIENCE;
use crate::error::MachineError;
use crate::machine::Machine;
use crate::threads::{self, ThreadKind};

/// Most that is copied while requests wait, of what was written where nothing was.
const MOST: u64 = 8 << 20;
/// How often it is tried to go over.
const TRIES: u32 = 10;
/// How often it is looked whether the guest has ended.
const LOOK: Duration = Duration::from_millis(100);

/// A disk of which the old image has all, and the new one what was written anew.
struct Layered {
    layer: Arc<OnDemand>,
    allocation: Allocation,
    /// What has changed since before the old image was looked at.
    changes: Arc<ChangeMap>,
    old: Arc<dyn BlockDevice>,
}

impl Layered {
    /// Has the new image hold what was written where the old one held nothing; how many bytes. No request is in flight.
    fn catch_up(&self) -> Result<u64, CopyError> {
        let mut written = Vec::new();
        for range in self.changes.changed_since(Generation::FIRST) {
            let blocks =
                (range.start / BLOCK..range.end.div_ceil(BLOCK)).map(|block| block * BLOCK);
            written.extend(blocks.filter(|at| !self.allocation.has(*at)));
        }
        let left = written.len() as u64 * BLOCK;
        if left > MOST {
            return Err(CopyError::TooMuch { left, most: MOST });
        }
        // From here on the old image has to be there after a power cut, too: it is a part of the disk.
        self.old.flush().map_err(CopyError::Source)?;
        let mut block = vec![0; BLOCK as usize];
        for at in written {
            let len = BLOCK.min(self.old.size() - at) as usize;
            let buffers = [Buffer::new(&mut block[..len])];
            self.old.read(&buffers, at).map_err(CopyError::Source)?;
            let copied = self.layer.write(&buffers, at, Durability::Flushed);
            copied.map_err(CopyError::Target)?;
        }
        self.layer.flush().map_err(CopyError::Target)?;
        Ok(left)
    }
}

impl DiskMove {
    /// Has the disk go over to `next`, and then what `next` lacks come.
    pub(super) fn on_demand(
        &self,
        (old, next): (&Arc<Disk>, &Arc<Disk>),
        (map, pull): (&Arc<dyn BlockDevice>, DiskPull),
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        report.mode = DiskMoveMode::OnDemand;
        let steering = &self.steering;
        let before = old.device();
        let bare = next.stack();
        self.machine.devices().track(&old.id)?;
        let layer = loop {
            let layered = self.layered(old, (next, &bare), map, &before)?;
            report.allocated_bytes = layered.allocation.blocks() * BLOCK;
            if !steering.begin_end() {
                // It is paused or cancelled.
                steering.rest(LOOK)?;
                continue;
            }
            let mut rest = || Ok(layered.catch_up()?);
            match self.go_over(&mut rest, next, to, report) {
                Ok(()) => break layered.layer,
                Err(MoveError::Copy(CopyError::TooMuch { .. })) if report.retries < TRIES => {
                    report.retries += 1;
                    steering.give_back();
                }
                Err(error) => return Err(error),
            }
        };
        steering.go_on_for_good();
        if pull == DiskPull::Off {
            steering.pause();
        }
        layer.set_pull(Pull::Background);
        let fetched = Fetched {
            machine: &self.machine,
            disk: &next.id,
            layer: &layer,
            steering,
        };
        fetched.to_the_end(bare, &report.from)
    }

    /// The new image with the layer that reads what it lacks from the old one, which nobody uses yet.
    fn layered(
        &self,
        old: &Disk,
        (next, bare): (&Disk, &Stack),
        map: &Arc<dyn BlockDevice>,
        before: &Arc<dyn BlockDevice>,
    ) -> Result<Layered, MoveError> {
        let changes = self.machine.devices().disks.changes(&old.id);
        let changes = changes.ok_or_else(|| MachineError::NoDisk { id: old.id.clone() })?;
        let origin = Arc::new(ImageOrigin::new(before.clone()));
        let allocation = origin.allocation().map_err(MoveError::Origin)?;
        // What was written before is read again below: it may have been looked at before it was.
        for range in changes.changed_since(Generation::FIRST) {
            allocation.add(&range);
        }
        let note = Note::new(
            next.image().format(),
            old.image().file().path(),
            old.image().format(),
        );
        let about = About {
            disk: before.size(),
            id: self.id.0,
            note: note.encode().ok_or(MoveError::LongPath)?,
        };
        let map = PresenceMap::create(map.clone(), about, &allocation).map_err(MoveError::Map)?;
        let mut stack = bare.clone();
        let begin = || threads::begin(ThreadKind::Disk);
        let layer = stack.try_lay(|image| {
            let policy = Policy {
                pull: Pull::Off,
                ..Policy::default()
            };
            OnDemand::new(image, map, origin, policy, self.steering.clone(), begin)
        });
        let layer = layer.map_err(MoveError::Map)?;
        next.current.put(stack);
        Ok(Layered {
            layer,
            allocation,
            changes,
            old: before.clone(),
        })
    }
}

/// A disk, and what fetches what it lacks.
pub(super) struct Fetched<'d> {
    pub(super) machine: &'d Machine,
    pub(super) disk: &'d str,
    pub(super) layer: &'d OnDemand,
    pub(super) steering: &'d Steering,
}

impl Fetched<'_> {
    /// Waits until nothing is missing, and takes the layer away, which leaves `bare`. What comes, comes from `from`.
    ///
    /// # Errors
    /// [`MoveError::InPart`].
    pub(super) fn to_the_end(&self, bare: Stack, from: &str) -> Result<(), MoveError> {
        self.pull(bare).map_err(|why| {
            if let Err(error) = self.layer.finish() {
                tracing::warn!(disk = %self.disk, %error, "what has come of the disk is not durable");
            }
            MoveError::InPart {
                missing: self.layer.status().missing_bytes,
                from: from.to_owned(),
                why: Box::new(why),
            }
        })
    }

    fn pull(&self, bare: Stack) -> Result<(), MoveError> {
        while !self.layer.wait_whole(LOOK) {
            if self.steering.standing() == Standing::Cancelled {
                return Err(CopyError::Cancelled.into());
            }
        }
        self.layer.finish().map_err(CopyError::Target)?;
        self.machine.devices().pivot(self.disk, bare, PATIENCE)?;
        Ok(())
    }
}
