//! A disk of which a part is in one image of this host and the rest in another: made whole without a guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block::copy::Steering;
use block::image::Image;
use block::image::qcow2::BackingRules;
use block::on_demand::{ImageOrigin, OnDemand, Policy, PresenceMap, Status};
use migration::MigrationId;
use migration::journal::{Handover, Journal};
use migration::observation::Observation;

use super::filling::fill;
use super::image_file;
use super::map_file::{self, FoundMap, Note, failed, in_part};
use super::removal::remove_map;
use crate::disks::marks::{self, Mark};

/// What was done to make an image whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// Image that had the rest.
    pub origin: PathBuf,
    /// Bytes that were read of it.
    pub fetched_bytes: u64,
}

/// What an image lacks: the one that has the rest, open and claimed, and the map of what that is.
pub(crate) struct OtherImage {
    /// Path of the image that has it.
    pub(crate) from: PathBuf,
    /// The job by which the disk has left that.
    pub(crate) job: MigrationId,
    pub(crate) origin: Image,
    pub(crate) map: PresenceMap,
    /// Held until nothing is missing.
    pub(crate) claim: block::Claim,
}

impl FoundMap<Note> {
    /// What `image`, which lies at `path` and is claimed, lacks, if both images are what they were. Files below the other one
    /// are opened by `rules`.
    pub(super) fn other_image(
        self,
        image: &Image,
        path: &Path,
        journal: &dyn Journal,
        rules: &BackingRules,
    ) -> Result<OtherImage, Observation> {
        let failed = |error: block::Error| failed(path, &error);
        let Self {
            storage,
            about,
            rest: note,
        } = self;
        let job = MigrationId(about.id);
        if image.format() != image_file::format_of(path, &note.format)? {
            return Err(in_part(path, format!("its format is {}", note.format)));
        }
        let mark = Mark::of_disk_on_demand(job, journal.identity(), "");
        if !mark.is_arriving_on(image.file()) {
            let why = "nothing on it says that its disk was moved to it on demand, by the job that the map names";
            return Err(in_part(path, why.into()));
        }
        let recorded = journal.recorded(job).ok().flatten();
        if !recorded.is_some_and(|record| record.handover == Handover::Gone) {
            let why = format!(
                "by the record of job {job} its disk has stayed at {}",
                note.origin.display()
            );
            return Err(in_part(path, why));
        }
        let from = note.origin;
        let (origin, claim) = image_file::open(path, (&from, &note.origin_format), rules)?;
        if !mark.is_leaving(origin.file()) {
            let why = format!(
                "{} has been used since its disk left it, and is not what it was",
                from.display()
            );
            return Err(in_part(path, why));
        }
        origin.begin_use().map_err(failed)?;
        let map = PresenceMap::open(storage, image.device().size()).map_err(failed)?;
        if origin.device().size() != image.device().size() {
            let why = "the image that has the rest has another size";
            return Err(in_part(path, why.into()));
        }
        Ok(OtherImage {
            from,
            job,
            origin,
            map,
            claim,
        })
    }
}

/// Removes the map of the image at `path`, which is claimed and the disk by itself, if by that map nothing is missing: whoever
/// brought the last of it could not.
pub(crate) fn remove_whole_map(image: &Image, path: &Path) {
    let Ok(found) = map_file::find(path).and_then(|found| found.in_image(path)) else {
        return;
    };
    let map = PresenceMap::open(found.storage, image.device().size());
    if map.is_ok_and(|map| map.missing() == 0) {
        remove_map(path);
    }
}

/// Brings what the image at `path` lacks of its disk, which no guest uses; `told` is called now and then. It may be killed at
/// any moment, and called again.
///
/// # Errors
/// `disk.in-part` when it is no such image, and when it cannot be made whole: it is as it was, or lacks less. `disk.claim` when
/// somebody uses either image.
pub fn complete(
    path: &Path,
    journal: &dyn Journal,
    told: &mut dyn FnMut(&Status),
) -> Result<Completed, Observation> {
    let failed = |error: block::Error| failed(path, &error);
    let found = map_file::find(path)?.in_image(path)?;
    let rules = BackingRules::default();
    let (image, _claim) = image_file::open(path, (path, &found.rest.format), &rules)?;
    let rest = found.other_image(&image, path, journal, &rules)?;
    image.begin_use().map_err(failed)?;
    let origin = Arc::new(ImageOrigin::new(rest.origin.device()));
    let steering = Arc::new(Steering::new(None, Duration::ZERO));
    let (device, policy) = (image.device(), Policy::default());
    let disk = OnDemand::new(device, rest.map, origin, policy, steering, || {});
    let disk = disk.map_err(failed)?;
    fill(path, &disk, told)?;
    marks::remove(image.file()).map_err(failed)?;
    remove_map(path);
    Ok(Completed {
        origin: rest.from,
        fetched_bytes: disk.status().fetched_bytes,
    })
}
