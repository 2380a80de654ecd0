//! A disk of which a part is in an image of this host, and the rest is served by another.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::copy::Steering;
use block::image::Image;
use block::image::qcow2::BackingRules;
use block::on_demand::{About, Allocation, BLOCK, OnDemand, Origin, Policy, PresenceMap, Status};
use block::{Access, BlockDevice, Claim, Content, RawImage};
use migration::MigrationId;
use migration::journal::Journal;
use migration::observation::Observation;

use super::filling::fill;
use super::image_file;
use super::lacks;
use super::map_file::{self, FoundMap, MapFile, Rest, ServedBy, failed, in_part, map_path, refuse};
use super::removal::remove_map;
use crate::disks::marks::{self, Mark};
use crate::disks::target::{Target, Wanted};

/// Who serves what the image at `path` lacks; `None` where that is in an image of this host.
///
/// # Errors
/// `disk.in-part` when it has no map, or a damaged one.
pub fn served_by(path: &Path) -> Result<Option<ServedBy>, Observation> {
    Ok(match map_file::find(path)?.rest {
        Rest::Image(_) => None,
        Rest::Served(by) => Some(by),
    })
}

fn id_of(path: &Path, by: &ServedBy) -> Result<MigrationId, Observation> {
    let id = by.migration.parse().ok();
    id.ok_or_else(|| in_part(path, "its map names no identifier".into()))
}

/// Makes an image at `path` that lacks all that `allocation` has, of a disk that is served as `by` tells, and its map.
///
/// # Errors
/// `disk.exists`, as [`Target::create`], and `disk.map`; nothing is left then.
pub fn begin(
    path: &Path,
    by: &ServedBy,
    allocation: &Allocation,
    journal: &dyn Journal,
) -> Result<(), Observation> {
    let id = id_of(path, by)?;
    let format = image_file::format_of(path, &by.format)?;
    if path.symlink_metadata().is_ok() {
        // Whatever it is: without its map nobody can tell what a guest has written to it.
        let message = format!(
            "there is something at {} already, which is not overwritten: name another path, or remove it",
            path.display()
        );
        return Err(refuse("disk.exists", message));
    }
    let target = Target::create_in_part(
        &Wanted {
            path,
            format,
            size: allocation.size(),
            needs: allocation.blocks() * BLOCK,
            id,
            overlays: None,
        },
        journal,
    )?;
    let passed = target.passed();
    let mapped = make_map(path, by, id, allocation).map(drop);
    if mapped.is_err() {
        passed.discard(journal);
        remove_map(path);
    }
    mapped
}

/// Makes the map of the image at `path`, which was just made for a disk of `size` bytes of a guest that comes in migration `id`
/// and whose disk is served as `by` tells: it lacks all of it, as nobody knows yet what it will hold.
///
/// # Errors
/// `disk.map`; nothing is left then.
pub(crate) fn begin_arriving(
    path: &Path,
    by: &ServedBy,
    id: MigrationId,
    size: u64,
) -> Result<(), Observation> {
    let all = Allocation::none(size);
    all.add(&(0..size));
    make_map(path, by, id, &all).inspect_err(|_| remove_map(path))
}

fn make_map(
    path: &Path,
    by: &ServedBy,
    id: MigrationId,
    allocation: &Allocation,
) -> Result<(), Observation> {
    lacks::create(path, by, id, allocation.size())?;
    let file = MapFile::create(path, allocation.size())?;
    let storage = RawImage::open(file.path(), Access::ReadWrite, Content::Container);
    let storage = storage.map_err(|e| failed(path, &e))?;
    let about = About {
        disk: allocation.size(),
        id: id.0,
        note: by
            .encode()
            .ok_or_else(|| in_part(path, "the address is too long".into()))?,
    };
    let map = PresenceMap::create(Arc::new(storage), about, allocation);
    map.map(drop).map_err(|e| failed(path, &e))
}

/// An image that is here in part, and its map.
pub(crate) struct ServedPart {
    by: ServedBy,
    size: u64,
    storage: Arc<dyn BlockDevice>,
    image: Option<(Image, Claim)>,
}

impl ServedPart {
    /// Opens the image at `path`, and claims it, and its map.
    ///
    /// # Errors
    /// `disk.in-part` when it is not what the map is of, `disk.claim` when somebody uses it.
    pub(crate) fn open(path: &Path, journal: &dyn Journal) -> Result<Self, Observation> {
        let failed = |error: block::Error| failed(path, &error);
        let found = map_file::find(path)?.served(path)?;
        let id = id_of(path, &found.rest)?;
        let is_arriving = {
            let image = RawImage::open(path, Access::ReadOnly, Content::Container);
            let image = image.map_err(failed)?;
            if let Some(why) = marks::why_left(&image, journal) {
                return Err(in_part(path, why));
            }
            found.is_of(&image, id, Comes::Here, journal)
        };
        let FoundMap {
            storage,
            about,
            rest: by,
        } = found;
        let image = if is_arriving {
            let rules = BackingRules::default();
            let (image, claim) = image_file::open(path, (path, &by.format), &rules)?;
            image.begin_use().map_err(failed)?;
            Some((image, claim))
        } else {
            // It was whole, and whoever said so by taking the mark away could not say it to who serves it.
            let map = PresenceMap::open(storage.clone(), about.disk).map_err(failed)?;
            if map.missing() > 0 {
                let why = format!(
                    "nothing on it says that it was made for what {} names",
                    map_path(path).display()
                );
                return Err(in_part(path, why));
            }
            None
        };
        Ok(Self {
            by,
            size: about.disk,
            storage,
            image,
        })
    }

    /// Who serves the rest.
    pub(crate) fn by(&self) -> &ServedBy {
        &self.by
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Which blocks of it are here, durably.
    ///
    /// # Errors
    /// `disk.in-part` when the map cannot be read.
    pub(crate) fn map(&self, path: &Path) -> Result<PresenceMap, Observation> {
        PresenceMap::open(self.storage.clone(), self.size).map_err(|e| failed(path, &e))
    }

    /// What each of its sources but the last one lacks.
    ///
    /// # Errors
    /// As [`ServedPart::map`].
    pub(crate) fn lacks(&self, path: &Path) -> Result<Vec<PresenceMap>, Observation> {
        lacks::open(path, &self.by, self.size)
    }

    /// Has all come that `map` lacks, from `origin`; how many bytes came. It is an image as any other then.
    ///
    /// # Errors
    /// `disk.in-part` when it cannot be made whole.
    pub(crate) fn fill(
        &self,
        path: &Path,
        map: PresenceMap,
        origin: Arc<dyn Origin>,
        told: &mut dyn FnMut(&Status),
        begun: impl FnOnce(&Arc<OnDemand>),
    ) -> Result<u64, Observation> {
        let failed = |error: block::Error| failed(path, &error);
        let Some((image, _claim)) = &self.image else {
            return Ok(0);
        };
        let steering = Arc::new(Steering::new(None, Duration::ZERO));
        let policy = Policy::default();
        let disk = OnDemand::new(image.device(), map, origin, policy, steering, || {});
        let disk = Arc::new(disk.map_err(failed)?);
        begun(&disk);
        fill(path, &disk, told)?;
        marks::remove(image.file()).map_err(failed)?;
        Ok(disk.status().fetched_bytes)
    }
}

/// Whether the guest of a disk is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comes {
    /// It is, or was, as is recorded.
    Here,
    /// It is on its way.
    Later,
}

/// What is served of a disk that a guest is to use, and what of it is here.
pub(crate) struct Absent {
    pub(crate) by: ServedBy,
    pub(crate) map: PresenceMap,
    /// What each of its sources but the last one lacks.
    pub(crate) lacks: Vec<PresenceMap>,
}

/// Which blocks of a disk of `size` bytes are in `image`, which lies at `path` and nobody changes any more; `None` where all are.
///
/// # Errors
/// `disk.in-part` when that cannot be told, as its map is gone or damaged, or is of another image.
pub(crate) fn held_of(
    (image, size): (&RawImage, u64),
    path: &Path,
    journal: &dyn Journal,
) -> Result<Option<Vec<bool>>, Observation> {
    if !marks::is_in_part(image) {
        return Ok(None);
    }
    let found = map_file::find(path)?.served(path)?;
    let absent = found.absent((image, size), path, Comes::Here, journal)?;
    Ok(Some(absent.map.present()))
}

impl FoundMap<ServedBy> {
    /// Whether `image` is the one that the map, whose note names `id`, was made for, and is not whole yet.
    fn is_of(
        &self,
        image: &RawImage,
        id: MigrationId,
        comes: Comes,
        journal: &dyn Journal,
    ) -> bool {
        let of_guest = MigrationId(self.about.id);
        match comes {
            Comes::Here => {
                let mark = Mark::of_disk_on_demand(id, journal.identity(), "");
                (of_guest == id && mark.is_arriving_on(image))
                    || marks::came_on_demand(image, of_guest, journal)
            }
            Comes::Later => {
                let mark = Mark::of_guest_on_demand(of_guest, journal.identity(), None);
                mark.is_arriving_on(image)
            }
        }
    }

    /// What is served of the disk of `size` bytes whose `image` at `path` is open here, and claimed.
    ///
    /// # Errors
    /// `disk.in-part` when its mark and its map do not go together, or the map is damaged.
    pub(super) fn absent(
        self,
        (image, size): (&RawImage, u64),
        path: &Path,
        comes: Comes,
        journal: &dyn Journal,
    ) -> Result<Absent, Observation> {
        let id = id_of(path, &self.rest)?;
        if !self.is_of(image, id, comes, journal) {
            let why = match marks::is_abandoned(image, journal) {
                true => "it was made for a guest that did not come",
                false => "nothing on it says that it was made for what its map names",
            };
            return Err(in_part(path, why.into()));
        }
        let map = PresenceMap::open(self.storage, size).map_err(|e| failed(path, &e))?;
        let lacks = lacks::open(path, &self.rest, size)?;
        Ok(Absent {
            by: self.rest,
            map,
            lacks,
        })
    }
}
