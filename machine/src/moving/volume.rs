//! Disks whose content leaves with their guest.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::layer::backlog::Backlog;
use block::layer::tracker::{BLOCK, Generation};
use migration::disk_bytes::SnapshotDisk;
use migration::observation::{Observation, Side};
use migration::vm::{BLOCK_SIZE, Behind, SourceVolume, VmResult, VolumeOffer, Wish};

use crate::disks::away::InOverlay;
use crate::disks::content::DiskContent;
use crate::disks::write_limit::WriteLimit;
use crate::machine::Machine;
use crate::moving::disk_move::snapshot::with_guest::{View, WithGuest};

const _: () = assert!(BLOCK == BLOCK_SIZE);

/// A disk of a machine as the source of its content.
pub(crate) struct OutgoingVolume {
    wish: Wish,
    machine: Arc<Machine>,
    /// The disk as the guest's requests find it without tracking.
    content: DiskContent,
    /// What changed from here on was not asked for yet.
    since: Mutex<Generation>,
    /// What its guest may write in a second while it is mirrored.
    writes: WriteLimit,
}

impl OutgoingVolume {
    /// Disk `id` of the machine; `None` when there is none.
    pub(crate) fn of(machine: &Arc<Machine>, id: &str, wish: Wish) -> Option<Self> {
        let disk = machine.devices().disks.find(id)?.device();
        Some(Self {
            wish,
            machine: machine.clone(),
            content: DiskContent {
                side: Side::Source,
                id: id.to_owned(),
                disk,
                uncached: machine.devices().disks.bare_image(id),
            },
            since: Mutex::new(Generation::FIRST),
            writes: WriteLimit::default(),
        })
    }
}

/// A disk of a machine whose content stays behind, to be fetched from there.
pub(crate) struct LeftVolume {
    volume: OutgoingVolume,
    /// Who serves what is not here either.
    behind: Vec<Behind>,
}

impl LeftVolume {
    /// Disk `id` of the machine; `None` when there is none.
    pub(crate) fn of(machine: &Arc<Machine>, id: &str) -> Option<Self> {
        let coming = machine.devices().disks.find(id)?.coming.clone();
        Some(Self {
            volume: OutgoingVolume::of(machine, id, Wish::OnDemand)?,
            behind: coming.map(|coming| coming.behind()).unwrap_or_default(),
        })
    }
}

impl SourceVolume for LeftVolume {
    fn offer(&self) -> VolumeOffer {
        VolumeOffer {
            behind: self.behind.clone(),
            ..self.volume.offer()
        }
    }

    fn image(&self) -> Option<String> {
        self.volume.image()
    }

    fn take_changes(&self, _: &mut [u64]) -> VmResult<()> {
        // Whatever changes is in the image that is served.
        Ok(())
    }

    fn data(&self, _: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        Ok(Vec::new())
    }

    fn read(&self, _: u64, _: &mut [u8]) -> VmResult<()> {
        let message = format!(
            "nothing of disk {} goes with its guest",
            self.volume.content.id
        );
        Err(Observation::new(Side::Source, "disk.read", message))
    }
}

impl OutgoingVolume {
    fn backlog(&self) -> Option<Arc<Backlog>> {
        let disks = &self.machine.devices().disks;
        disks.tracked().backlog(&self.content.id)
    }
}

impl SourceVolume for OutgoingVolume {
    fn offer(&self) -> VolumeOffer {
        VolumeOffer {
            id: self.content.id.clone(),
            size: self.content.disk.size(),
            allocated: self.content.allocated(),
            wish: self.wish,
            // What its user says of that is no matter of its own.
            format: None,
            served: None,
            behind: Vec::new(),
        }
    }

    fn image(&self) -> Option<String> {
        let image = self.machine.devices().disks.image(&self.content.id)?;
        Some(image.file().path().display().to_string())
    }

    fn take_changes(&self, changed: &mut [u64]) -> VmResult<()> {
        let Some(changes) = self.machine.devices().disks.changes(&self.content.id) else {
            let message = format!("changes of disk {} are not tracked", self.content.id);
            return Err(Observation::new(Side::Source, "disk.tracking", message));
        };
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let next = changes.begin_generation();
        for range in changes.changed_since(*since) {
            for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                if let Some(word) = changed.get_mut((block / 64) as usize) {
                    *word |= 1 << (block % 64);
                }
            }
        }
        *since = next;
        Ok(())
    }

    fn has_changed(&self, block: u64) -> bool {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.machine.devices().disks.changes(&self.content.id);
        changes.is_some_and(|changes| changes.has_changed(block * BLOCK, since))
    }

    fn bound_backlog(&self, most: Option<u64>) -> VmResult<()> {
        let backlog = match (self.backlog(), most) {
            (Some(backlog), _) => backlog,
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                let devices = self.machine.devices();
                let laid = devices.bound_backlog(&self.content.id, &self.writes);
                laid.map_err(|e| e.observed(Side::Source))?
            }
        };
        backlog.bound(most);
        Ok(())
    }

    fn limit_writes(&self, rate: Option<u64>) {
        self.writes.set(rate);
    }

    fn let_in(&self) -> u64 {
        self.backlog().map_or(0, |backlog| backlog.let_in())
    }

    fn carried(&self, let_in: u64) {
        if let Some(backlog) = self.backlog() {
            backlog.carried(let_in);
        }
    }

    fn waits_for(&self) -> Option<Duration> {
        self.backlog()?.waits_for()
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        self.content.data(range)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        self.content.read(offset, into)
    }
}

/// A disk of a machine that goes by way of overlays.
pub(crate) struct SnapshotVolume {
    /// The disk before it is in an overlay.
    before: OutgoingVolume,
    way: Arc<WithGuest>,
}

impl SnapshotVolume {
    /// The disk of the machine that goes by `way`; `None` when there is none.
    pub(crate) fn of(machine: &Arc<Machine>, way: &Arc<WithGuest>) -> Option<Self> {
        Some(Self {
            before: OutgoingVolume::of(machine, way.id(), Wish::Travels)?,
            way: way.clone(),
        })
    }

    /// What is read of it now, where that is not the image.
    fn elsewhere(&self) -> Option<DiskContent> {
        let (View::Left(disk) | View::Still(disk)) = self.way.view() else {
            return None;
        };
        Some(DiskContent {
            side: Side::Source,
            id: self.before.content.id.clone(),
            disk,
            uncached: None,
        })
    }
}

impl SourceVolume for SnapshotVolume {
    fn offer(&self) -> VolumeOffer {
        self.before.offer()
    }

    fn image(&self) -> Option<String> {
        Some(self.way.path())
    }

    fn take_changes(&self, changed: &mut [u64]) -> VmResult<()> {
        self.way.take_changes(changed).map_err(|e| e.observed())
    }

    fn has_changed(&self, block: u64) -> bool {
        self.way.has_changed(block)
    }

    fn check(&self) -> VmResult<()> {
        self.way.check().map_err(|e| e.observed())
    }

    fn overlays(&self) -> Option<SnapshotDisk> {
        Some(self.way.told())
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        match self.elsewhere() {
            Some(content) => content.data(range),
            None => self.before.data(range),
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        match self.elsewhere() {
            Some(content) => content.read(offset, into),
            None => self.before.read(offset, into),
        }
    }
}
