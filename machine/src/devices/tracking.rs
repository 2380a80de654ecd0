//! Tracking of a disk's changes, or mirroring of them, turned on and off under its guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use block::layer::backlog::Backlog;
use block::layer::tracker::{ChangeMap, Tracker};
use block::mirror::Mirror;
use block::{BlockDevice, Stack};

use super::Devices;
use crate::disks::pivots::PATIENCE;
use crate::disks::tracking::Track;
use crate::disks::write_limit::WriteLimit;
use crate::error::MachineError;
use crate::threads::{self, ThreadKind};

impl Devices {
    /// Has changes of disk `id` tracked from here on, for whoever is the only one to ask; nothing has changed yet.
    ///
    /// # Errors
    /// When there is no such disk, or its requests do not end in time; nothing is changed then.
    pub(crate) fn track(&self, id: &str) -> Result<(), MachineError> {
        let mut tracked = self.disks.tracked().lock();
        let before = self.untracked(&tracked, id)?;
        let changes = Arc::new(ChangeMap::new(before.device().size()));
        let mut with = before.clone();
        with.lay(|disk| Tracker::new(disk, changes.clone()));
        let track = Track {
            changes,
            backlog: None,
            before,
            with,
        };
        self.lay(&mut tracked, id, track)
    }

    /// Has changes of disk `id`, which is tracked, held up from here on whenever what they have marked is not carried away
    /// soon enough for the bound that is set then, or when they are over what `writes` says.
    ///
    /// # Errors
    /// As [`Devices::track`].
    pub(crate) fn bound_backlog(
        &self,
        id: &str,
        writes: &WriteLimit,
    ) -> Result<Arc<Backlog>, MachineError> {
        let mut tracked = self.disks.tracked().lock();
        let before = self.untracked(&tracked, id)?;
        let Some(changes) = tracked.get(id).map(|track| track.changes.clone()) else {
            return Err(MachineError::NoDisk { id: id.to_owned() });
        };
        let mut with = before.clone();
        with.lay(|disk| Tracker::new(disk, changes.clone()));
        let backlog = with.lay(|disk| Backlog::new(disk, changes.clone()));
        limited(id, &mut with, writes)?;
        let track = Track {
            changes,
            backlog: Some(backlog.clone()),
            before,
            with,
        };
        self.lay(&mut tracked, id, track)?;
        Ok(backlog)
    }

    /// Has what is written to disk `id` go to `target` as well from here on, each request of which may take `patience` there,
    /// in place of being tracked, and no more of it in a second than `writes` says: [`Disks::changes`](crate::disks::Disks::changes) tells what was until now, and what the
    /// target misses.
    ///
    /// # Errors
    /// As [`Devices::track`], and when threads cannot be started.
    pub(crate) fn mirror(
        &self,
        id: &str,
        target: Arc<dyn BlockDevice>,
        patience: Duration,
        writes: &WriteLimit,
    ) -> Result<Arc<Mirror>, MachineError> {
        let mut tracked = self.disks.tracked().lock();
        let before = self.untracked(&tracked, id)?;
        let changes = match tracked.get(id) {
            Some(track) => track.changes.clone(),
            None => Arc::new(ChangeMap::new(before.device().size())),
        };
        let mut with = before.clone();
        let mirror = with.try_lay(|disk| {
            let begin = || threads::begin(ThreadKind::Disk);
            Mirror::new(disk, target, changes.clone(), patience, begin)
        });
        let mirror = mirror.map_err(|source| not_laid(id, source))?;
        limited(id, &mut with, writes)?;
        let track = Track {
            changes,
            backlog: None,
            before,
            with,
        };
        self.lay(&mut tracked, id, track)?;
        Ok(mirror)
    }

    /// The stack of disk `id` without what tracks or mirrors its changes.
    fn untracked(
        &self,
        tracked: &BTreeMap<String, Track>,
        id: &str,
    ) -> Result<Stack, MachineError> {
        let disk = self.disks.find(id);
        let disk = disk.ok_or_else(|| MachineError::NoDisk { id: id.to_owned() })?;
        Ok(match tracked.get(id) {
            // Also where it could not be taken away when it was to: requests did not end in time.
            Some(track) if disk.stack().is_same(&track.with) => track.before.clone(),
            _ => disk.stack(),
        })
    }

    /// Has the requests of disk `id` go to the stack of `track`, until they go to that before again.
    fn lay(
        &self,
        tracked: &mut BTreeMap<String, Track>,
        id: &str,
        track: Track,
    ) -> Result<(), MachineError> {
        self.pivot(id, track.with.clone(), PATIENCE)?;
        tracked.insert(id.to_owned(), track);
        Ok(())
    }

    /// Has changes of disk `id` tracked no more.
    ///
    /// # Errors
    /// When its requests do not end in time: it stays as it is.
    pub(crate) fn untrack(&self, id: &str) -> Result<(), MachineError> {
        self.put_back(&mut self.disks.tracked().lock(), id)
    }

    /// Has changes of no disk tracked any more.
    ///
    /// # Errors
    /// When requests of one do not end in time: it stays as it is, and is tried again by the next call.
    pub(crate) fn untrack_all(&self) -> Result<(), MachineError> {
        let mut tracked = self.disks.tracked().lock();
        let mut first = Ok(());
        let ids: Vec<String> = tracked.keys().cloned().collect();
        for id in ids {
            first = first.and(self.put_back(&mut tracked, &id));
        }
        first
    }

    fn put_back(
        &self,
        tracked: &mut BTreeMap<String, Track>,
        id: &str,
    ) -> Result<(), MachineError> {
        let (Some(track), Some(disk)) = (tracked.get(id), self.disks.find(id)) else {
            return Ok(());
        };
        if let Some(backlog) = &track.backlog {
            backlog.bound(None);
        }
        // If the stack has become another one meanwhile, the tracker is not in it.
        if disk.stack().is_same(&track.with) {
            self.pivot(id, track.before.clone(), PATIENCE)?;
        }
        tracked.remove(id);
        Ok(())
    }
}

/// Has what is written to disk `id` by way of `stack` be no more in a second than `writes` says.
fn limited(id: &str, stack: &mut Stack, writes: &WriteLimit) -> Result<(), MachineError> {
    writes.lay(stack).map_err(|source| not_laid(id, source))
}

fn not_laid(id: &str, source: block::Error) -> MachineError {
    MachineError::Device {
        id: id.to_owned(),
        source: devices::Error::Disk { source },
    }
}
