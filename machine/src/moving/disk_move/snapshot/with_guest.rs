//! A disk that goes to another host with its guest by way of overlays. The migration copies: all of the image in its first pass,
//! while the guest is in the first overlay; then, pass by pass, what is in the overlay that the guest has just left, which is
//! brought back to the image meanwhile. Its base is the image at all times, so that a guest which stays has little to bring back.
//!
//! # Invariants
//! - The image does not change before the first pass is over.
//! - What a pass reads does not change while it does ([`View`]); what is marked afterwards is in the overlay that comes next.
//! - As for a move on this host, the record of the disk's own job says which overlay it is in; and the marks, that nothing of that
//!   counts when the guest has gone ([`Mark::within`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use block::BlockDevice;
use block::copy::{CopyError, Steering};
use block::tracker::{BLOCK, ChangeMap, Generation};
use migration::MigrationId;
use migration::disk_bytes::SnapshotDisk;
use migration::journal::Journal;
use migration::observation::{Observation, Side};

use super::files::OverlayFiles;
use super::{Course, copy};
use crate::disks::Disk;
use crate::disks::away::InOverlay;
use crate::disks::marks::Part;
use crate::moving::disk_move::standing::Standing;
use crate::moving::disk_move::{DiskMove, MoveError};
use crate::power::PauseReason;
use crate::threads::{self, ThreadKind};

/// What a pass reads of the disk.
#[derive(Clone)]
pub(crate) enum View {
    /// The image, as it was when the guest went over to the first overlay.
    Image,
    /// An overlay that the guest has left.
    Left(Arc<dyn BlockDevice>),
    /// The disk of a guest that stands still.
    Still(Arc<dyn BlockDevice>),
}

struct State {
    course: Course,
    /// What changed from here on was not asked for yet.
    since: Generation,
    /// Brings back what the guest has left.
    merging: Option<JoinHandle<Result<(), MoveError>>>,
}

/// A disk on its way.
pub(crate) struct WithGuest {
    moving: Arc<DiskMove>,
    files: Arc<OverlayFiles>,
    image: Arc<Disk>,
    changes: Arc<ChangeMap>,
    state: Mutex<State>,
    view: Mutex<View>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Waits until what the guest has left is in the image.
    fn merged(&mut self) -> Result<(), MoveError> {
        match self.merging.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(merged)) => merged,
            Some(Err(_)) => Err(MoveError::Copy(CopyError::Cancelled)),
        }
    }

    /// Begins to bring what the guest has left back to the image.
    fn merge(&mut self) -> Result<(), MoveError> {
        let Some(left) = self.course.below.as_ref().map(|left| left.image.clone()) else {
            return Ok(());
        };
        let image = self.course.old.clone();
        let merging = Builder::new().name("disk-merge".into()).spawn(move || {
            threads::begin(ThreadKind::DiskMove);
            let own = left.own_ranges().map_err(MoveError::Overlay)?;
            let mut copy = copy(left, &image);
            copy.ranges(&own, &Steering::new(None, Duration::ZERO))?;
            copy.flush()?;
            Ok(())
        });
        let merging = merging.map_err(|source| {
            let path = self.course.old.image().file().path().to_owned();
            MoveError::Overlay(block::Error::Thread { path, source })
        })?;
        self.merging = Some(merging);
        Ok(())
    }
}

impl WithGuest {
    /// The disk `image`, of which nothing is done yet.
    pub(crate) fn new(moving: DiskMove, files: OverlayFiles, image: Arc<Disk>, to: &str) -> Self {
        let (moving, files) = (Arc::new(moving), Arc::new(files));
        let changes = Arc::new(ChangeMap::new(image.device().size()));
        let mut course = Course::new(&moving, &files, (&image, &image), to.to_owned());
        course.changes = Some((changes.clone(), Generation::FIRST));
        course.report.size_bytes = image.device().size();
        Self {
            state: Mutex::new(State {
                course,
                since: Generation::FIRST,
                merging: None,
            }),
            moving,
            files,
            image,
            changes,
            view: Mutex::new(View::Image),
        }
    }

    /// Path of its image.
    pub(crate) fn path(&self) -> String {
        self.image.image().file().path().display().to_string()
    }

    /// Records that it is in its image, and marks that and the overlays as those of a disk that goes with its guest in `migration`.
    ///
    /// # Errors
    /// When that is not durable, or the storage has no marks.
    pub(crate) fn mark(&self, migration: MigrationId) -> Result<(), MoveError> {
        let Self {
            moving,
            files,
            image,
            ..
        } = self;
        moving.journal.reserve(moving.id, Side::Source)?;
        moving.begin(&locked(&self.state).course.to)?;
        let mark = files.mark_of_old(moving.mark.clone()).within(migration);
        let file = image.image().file();
        if !mark.set_leaving(file).map_err(MoveError::Mark)? {
            let path = file.path().to_owned();
            return Err(MoveError::NoMarks { path });
        }
        for number in files.numbers() {
            let mark = files.mark_of(moving.mark.clone(), Part::Overlay(number));
            let set = mark.within(migration).set_arriving(&files.of(number).file);
            set.map_err(MoveError::Mark)?;
        }
        Ok(())
    }

    /// Has the guest go on in the first overlay.
    ///
    /// # Errors
    /// When there is no room for overlays, or one cannot be made.
    pub(crate) fn begin(&self) -> Result<(), MoveError> {
        let mut state = locked(&self.state);
        let course = &mut state.course;
        let held = copy(course.old.device(), &course.old);
        course.report.allocated_bytes = held.allocated()?;
        course.forecast_space()?;
        course.next_overlay()
    }

    /// What is read of it now.
    pub(crate) fn view(&self) -> View {
        locked(&self.view).clone()
    }

    /// Adds the blocks that were written since this was asked last to `changed`, and has the guest go on in the next overlay if it
    /// runs: what it has left is what is read from here on.
    ///
    /// # Errors
    /// When there is no room for what the guest writes, or the next overlay cannot be used.
    pub(crate) fn take_changes(&self, changed: &mut [u64]) -> Result<(), MoveError> {
        self.check()?;
        let mut state = locked(&self.state);
        let since = state.since;
        let cut = if self.moving.machine.paused_for(PauseReason::Migration) {
            let active = state.course.active.as_ref();
            let disk = active.map_or(&self.image, |active| &active.disk);
            *locked(&self.view) = View::Still(disk.device());
            self.changes.begin_generation()
        } else if self.changes.changed_since(since).next().is_none() {
            return Ok(());
        } else {
            state.merged()?;
            state.course.next_overlay()?;
            state.course.report.rounds += 1;
            state.course.note_space();
            if let Some(left) = &state.course.below {
                *locked(&self.view) = View::Left(left.image.clone());
            }
            state.merge()?;
            let cut = state.course.changes.as_ref().map(|(_, cut)| *cut);
            cut.unwrap_or(since)
        };
        for range in self.changes.changed_since(since) {
            for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                if let Some(word) = changed.get_mut((block / 64) as usize) {
                    *word |= 1 << (block % 64);
                }
            }
        }
        state.since = cut;
        Ok(())
    }

    /// Whether `block` was written since changes were last asked for.
    pub(crate) fn has_changed(&self, block: u64) -> bool {
        let Ok(state) = self.state.try_lock() else {
            return false;
        };
        self.changes.has_changed(block * BLOCK, state.since)
    }

    /// That there is room for what the guest writes.
    ///
    /// # Errors
    /// [`MoveError::OverlayFull`].
    pub(crate) fn check(&self) -> Result<(), MoveError> {
        let state = locked(&self.state);
        match (&state.course.active, state.course.is_full()) {
            (Some(active), true) => Err(MoveError::OverlayFull {
                path: active.disk.image().file().path().to_owned(),
            }),
            (_, _) => Ok(()),
        }
    }

    /// What was done.
    pub(crate) fn told(&self) -> SnapshotDisk {
        let report = &locked(&self.state).course.report;
        SnapshotDisk {
            id: self.image.id.clone(),
            rounds: report.rounds,
            pauses_us: report.pauses_us.clone(),
            forecast_bytes: report.forecast_bytes,
            overlay_bytes: report.overlay_bytes,
        }
    }

    /// Nobody is kept from removing the overlays any more.
    fn leave_overlays(&self) {
        for number in self.files.numbers() {
            if let Err(error) = self.files.of(number).claim.release() {
                tracing::warn!(%error, "the claim on an overlay could not be released");
            }
        }
    }

    fn bring_to_image(&self, state: &mut State) -> Result<(), MoveError> {
        // What it has not brought is brought again.
        let merged = state.merged();
        let course = &state.course;
        let Some(active) = &course.active else {
            return Ok(());
        };
        let mut ranges = active.image.own_ranges().map_err(MoveError::Overlay)?;
        if let (Some(left), Err(_)) = (&course.below, merged) {
            ranges.extend(left.image.own_ranges().map_err(MoveError::Overlay)?);
        }
        let mut copy = copy(active.image.clone(), &course.old);
        copy.ranges(&ranges, &Steering::new(None, Duration::ZERO))?;
        copy.flush()?;
        self.moving.record(Standing::Kept, &course.to)?;
        Ok(())
    }
}

impl InOverlay for WithGuest {
    fn id(&self) -> &str {
        &self.image.id
    }

    fn bring_back(&self) -> Result<(), Observation> {
        let mut state = locked(&self.state);
        if let Err(error) = state.merged() {
            tracing::warn!(%error, "what the guest had left is brought back again");
        }
        let why = state.course.back(MoveError::Copy(CopyError::Cancelled));
        if let MoveError::InOverlay { .. } = why {
            return Err(why.observed());
        }
        self.moving.stay(&self.image.id, &state.course.to);
        state.course.give_space_back();
        self.leave_overlays();
        Ok(())
    }

    fn let_go(&self) {
        let mut state = locked(&self.state);
        match self.bring_to_image(&mut state) {
            Ok(()) => state.course.empty_all(),
            Err(error) => {
                tracing::warn!(disk = %self.image.id, %error, "the image that the guest has left lacks what it wrote last");
            }
        }
        self.leave_overlays();
        if let Err(error) = self.image.claim.release() {
            tracing::warn!(disk = %self.image.id, %error, "the claim on the image could not be released");
        }
    }
}
