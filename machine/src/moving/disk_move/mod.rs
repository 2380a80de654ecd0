//! A disk that moves to another image on its host, under its running guest.
//!
//! How its content gets there is a mode, each in a file of its own ([`precopy`], [`mirror`], [`snapshot`], [`on_demand`]). When little is left, requests wait, the
//! rest is copied, the new image is made durable, the journal says that it is the disk from here on, and it takes the place
//! of the old one: that is the same in all modes, and here.
//!
//! # Invariants
//! - The journal's record decides which of the two images is the disk, and both say so by their marks
//!   ([`crate::disks::marks`]): `Begun` and `Kept` the old one, `Gone` the new one. It is written once the new image holds
//!   all that the guest was told is done, durably, and before any request is carried out there.
//! - Whatever fails before leaves the guest with the old image, as if nothing had been tried. After it nothing can fail, but
//!   that of a disk which moves on demand both images stay parts ([`MoveError::InPart`]).
//! - When it is over, one of the two images is open here, and claimed.

mod error;
pub(crate) mod going_on;
mod mirror;
mod on_demand;
mod precopy;
pub(crate) mod snapshot;
mod standing;
mod told;

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::BlockDevice;
use block::copy::{CopyError, Steering, Target};
use control::disk_move::{DiskMoveMode, DiskMoveReport, DiskPull, OnNotConverging, OnTargetError};
use devices::virtio::Handover;
use migration::MigrationId;
use migration::journal::{FileJournal, Journal, JournalError};

pub(crate) use self::error::MoveError;
use self::snapshot::files::OverlayFiles;
use self::standing::Standing;
pub(crate) use self::told::Told;
use crate::disks::Disk;
use crate::disks::marks::{self, Mark};
use crate::disks::write_limit::WriteLimit;
use crate::error::MachineError;
use crate::machine::Machine;

/// How the content of a disk gets to its new image.
pub(crate) enum Mode {
    /// Before the disk does, in passes.
    Precopy,
    /// Before it does, while what is written goes to both.
    Mirror,
    /// Before it does, by way of overlays.
    Snapshot(Arc<OverlayFiles>),
    /// After it: what the new image lacks is in a map, in this storage.
    OnDemand {
        map: Arc<dyn BlockDevice>,
        pull: DiskPull,
    },
}

/// A disk, and where it goes.
pub(crate) struct DiskMove {
    pub(crate) machine: Arc<Machine>,
    pub(crate) id: MigrationId,
    pub(crate) mark: Mark,
    pub(crate) journal: FileJournal,
    /// What it costs to record the decision.
    pub(crate) record_cost: Duration,
    pub(crate) content: Target,
    pub(crate) mode: Mode,
    pub(crate) on_not_converging: OnNotConverging,
    pub(crate) on_target_error: OnTargetError,
    pub(crate) told: Arc<Told>,
    pub(crate) steering: Arc<Steering>,
    /// What the guest may write in a second while the disk is mirrored.
    pub(crate) writes: Arc<WriteLimit>,
}

/// What is done while requests wait.
struct Last<'m> {
    this: &'m DiskMove,
    /// Copies what is left; how many bytes that was.
    rest: &'m mut dyn FnMut() -> Result<u64, MoveError>,
    copied: u64,
    step: Step<'m>,
    old: &'m Disk,
    new: &'m Disk,
}

/// From which image of a move to which other the disk goes.
#[derive(Clone, Copy)]
struct Step<'m> {
    to: &'m str,
    was: Standing,
    becomes: Standing,
}

impl Handover for Last<'_> {
    type Error = MoveError;

    fn complete(&mut self) -> Result<(), MoveError> {
        self.copied = (self.rest)()?;
        match self.new.image().file().has_name() {
            Ok(true) => Ok(()),
            Ok(false) => Err(MoveError::Removed),
            Err(error) => Err(CopyError::Target(error).into()),
        }
    }

    fn decide(&mut self) -> Result<(), MoveError> {
        let Step { to, was, becomes } = self.step;
        if let Err(error) = self.new.unseal() {
            self.new.seal_again();
            return Err(CopyError::Target(error).into());
        }
        let Err(error) = self.this.record(becomes, to) else {
            return Ok(());
        };
        self.new.seal_again();
        // It may be recorded all the same, and the guest goes on with the old image. While requests still wait, that is
        // made true; or the images are marked anew, so that the record says nothing of them.
        if self.this.undecide(was, to).is_err() {
            let disowned = self.this.disown(self.new, self.old);
            if let Err(error) = disowned {
                tracing::error!(%error, "should this process be killed, both images of the disk have to be looked at");
            }
        }
        Err(error.into())
    }
}

impl DiskMove {
    /// Records that the old image is the disk, until something else is recorded.
    ///
    /// # Errors
    /// When that is not durable.
    pub(crate) fn begin(&self, to: &str) -> Result<(), JournalError> {
        self.record(Standing::Old, to)
    }

    fn record(&self, standing: Standing, to: &str) -> Result<(), JournalError> {
        self.journal.record(self.id, &standing.recorded(to))
    }

    /// Records that the disk is, and stays, where it `was`.
    fn undecide(&self, was: Standing, to: &str) -> Result<(), JournalError> {
        let kept = self.record(was.kept(), to);
        kept.inspect_err(|error| {
            tracing::error!(%error, "it cannot be recorded that the disk stays where it was");
        })
    }

    /// Moves the disk to `next`; what was done, and why it came to nothing, if it did.
    pub(crate) fn run(self: &Arc<Self>, mut next: Disk) -> (DiskMoveReport, Result<(), MoveError>) {
        let began = Instant::now();
        let opens = self.machine.devices().disks.exclusive_opens();
        if let Some(exclusive) = next.take_exclusive() {
            opens.keep(exclusive);
        }
        let sealed = next.seal(&self.mark).map_err(CopyError::Target);
        let next = Arc::new(next);
        let to = next.image().file().path().display().to_string();
        let mut report = DiskMoveReport {
            to: to.clone(),
            size_bytes: next.device().size(),
            ..DiskMoveReport::default()
        };
        let moved = sealed.map_err(MoveError::from);
        let moved = moved.and_then(|()| self.move_to(&next, &to, &mut report));
        match &moved {
            Err(error) if !error.is_past_the_record() => {
                self.stay(&next.id, &to);
                opens.release_device(next.image().file().identity().device);
            }
            // It is not where it was, and its record says so.
            Ok(()) | Err(_) => {}
        }
        let progress = self.steering.progress();
        // A last pass, while requests wait, is not steered; a mirror needs none.
        let last =
            moved.is_ok() && matches!(report.mode, DiskMoveMode::Precopy | DiskMoveMode::Snapshot);
        report.passes = progress.passes + u32::from(last);
        report.copied_bytes = progress.done + report.last_bytes;
        report.class_bytes.background = report.copied_bytes;
        report.total_ms = millis(began.elapsed());
        (report, moved)
    }

    fn move_to(
        self: &Arc<Self>,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let (id, devices) = (&next.id, self.machine.devices());
        let unknown = || MachineError::Mismatch(format!("there is no disk {id}"));
        let old = devices.disks.find(id).ok_or_else(unknown)?;
        let file = old.image().file();
        report.from = file.path().display().to_string();
        let mark = match &self.mode {
            Mode::Precopy | Mode::Mirror | Mode::OnDemand { .. } => self.mark.clone(),
            Mode::Snapshot(overlays) => overlays.mark_of_old(self.mark.clone()),
        };
        if !mark.set_leaving(file).map_err(MoveError::Mark)? {
            if let Mode::Snapshot(_) = &self.mode {
                // Whoever ran it after a crash would miss all that was written to overlays.
                return Err(MoveError::NoMarks {
                    path: file.path().to_owned(),
                });
            }
            tracing::warn!(disk = %id, "the storage has no marks: when the disk has moved, nothing will keep others from its old image");
        }
        let at = match &self.mode {
            Mode::Precopy => {
                self.by_passes(&old, next, to, report)?;
                next.clone()
            }
            Mode::Mirror => {
                self.by_mirror(&old, next, to, report)?;
                next.clone()
            }
            Mode::Snapshot(overlays) => self.by_overlays(&old, next, overlays, report)?,
            Mode::OnDemand { map, pull } => {
                self.on_demand((&old, next), (map, *pull), to, report)?;
                next.clone()
            }
        };
        leave(&self.machine, &old);
        // Also that a disk has left it before, if one has.
        if let Err(error) = marks::remove(at.image().file()) {
            tracing::warn!(disk = %id, %error, "the new image stays marked as one that is being made");
        }
        Ok(())
    }

    /// Has requests wait and `rest` copy what is left, and makes the new image the disk.
    fn go_over(
        &self,
        rest: &mut dyn FnMut() -> Result<u64, MoveError>,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let step = Step {
            to,
            was: Standing::Old,
            becomes: Standing::New,
        };
        let (stood, copied) = self.take_step(rest, next, step)?;
        report.last_bytes = copied;
        report.io_pause_us = micros(stood);
        tracing::info!(disk = %next.id, %to, us = report.io_pause_us, "the disk has moved");
        Ok(())
    }

    /// Has requests wait and `rest` do what is left to do, and makes another image the disk: how long requests waited, and
    /// how many bytes were copied meanwhile.
    fn take_step(
        &self,
        rest: &mut dyn FnMut() -> Result<u64, MoveError>,
        next: &Arc<Disk>,
        step: Step<'_>,
    ) -> Result<(Duration, u64), MoveError> {
        let devices = self.machine.devices();
        let unknown = || MachineError::Mismatch(format!("there is no disk {}", next.id));
        let old = devices.disks.find(&next.id).ok_or_else(unknown)?;
        let mut last = Last {
            this: self,
            rest,
            copied: 0,
            step,
            old: &old,
            new: next,
        };
        let stood = devices.hand_over_disk(next, &mut last)?;
        Ok((stood, last.copied))
    }

    /// Has the images say, whatever is recorded, that the old one is the disk.
    fn disown(&self, new: &Disk, old: &Disk) -> block::Result<()> {
        marks::disown(new.image().file())?;
        marks::remove(old.image().file())
    }

    /// Leaves the guest with the old image, on which nothing tells of the move any more.
    fn stay(&self, id: &str, to: &str) {
        let devices = self.machine.devices();
        if let Err(error) = devices.untrack(id) {
            tracing::warn!(disk = %id, %error, "changes of the disk are tracked on");
        }
        // Told of already, and the marks on the images do without.
        let _ = self.undecide(Standing::Old, to);
        let old = devices.disks.find(id);
        let removed = old.map_or(Ok(()), |old| marks::remove(old.image().file()));
        if let Err(error) = removed {
            tracing::warn!(disk = %id, %error, "the image stays marked as one whose disk was being moved");
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Lets go of the image that a disk had before.
fn leave(machine: &Machine, old: &Disk) {
    // So that it is found as one that nobody uses.
    if let Err(error) = old.device().flush() {
        tracing::warn!(disk = %old.id, %error, "the old image was not flushed");
    }
    if let Err(error) = old.claim.release() {
        tracing::warn!(disk = %old.id, %error, "the claim on the old image could not be released");
    }
    let opens = machine.devices().disks.exclusive_opens();
    opens.release_device(old.image().file().identity().device);
}
