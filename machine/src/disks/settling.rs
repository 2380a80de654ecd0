//! Moves by way of overlays that were cut short: what is in overlays is brought to the image that they lie over, which is the
//! disk again, or then, as it was recorded. For who runs the guest again, before it does: the process of a VM may open
//! neither.
//!
//! # Invariants
//! - Until it is recorded that the image is the disk, the overlays are, and are whole: whoever is killed here may begin anew.
//! - Overlays are removed when nothing is recorded to need them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block::copy::{Copy, Steering};
use block::image::qcow2::{BackingRules, Qcow2Image};
use block::image::{Format, Image};
use block::tracker::ChangeMap;
use block::{Access, BlockDevice, Content, RawImage};
use control::disk_move::ImageFormat;
use migration::journal::{FileJournal, Handover, Journal, OverlayBase, SourceRecord};
use migration::observation::{Observation, Side};

use crate::disks::marks::{self, OVERLAYS, Overlays, Unsettled};
use crate::disks::unused::left_over;

fn refuse(id: &str, message: String) -> Observation {
    Observation::new(Side::Client, id, message)
}

fn failed(path: &Path) -> impl Fn(block::Error) -> Observation {
    let message = format!(
        "{}: what is in the overlays of a move that was cut short cannot be brought together",
        path.display()
    );
    move |error| {
        let why = Observation::from_error(Side::Client, "disk.io", &error);
        refuse("disk.overlay", message.clone()).caused_by(why)
    }
}

/// Brings the disk of which `path` is an image together, if it was left in an overlay of a move that was cut short, as the
/// journal in `folder` says; where it is then. Files below it are opened in their folders, and those that are `permitted`.
///
/// # Errors
/// `disk.overlay` when that fails, as often as it is tried: nothing is lost; or when `path` was an overlay, and is no more.
/// `disk.claim` while somebody uses one of the images.
pub fn settle(
    path: &Path,
    folder: &Path,
    permitted: &[PathBuf],
) -> Result<Option<PathBuf>, Observation> {
    // What cannot be opened is told of by whoever needs it.
    let Ok(image) = RawImage::open(path, Access::ReadOnly, Content::Container) else {
        return Ok(None);
    };
    if !marks::are_on(&image) {
        return Ok(None);
    }
    let journal = FileJournal::open(folder)
        .map_err(|e| Observation::from_error(Side::Client, "migration.journal", &e))?;
    let Some(unsettled) = marks::unsettled(&image, &journal) else {
        return Ok(None);
    };
    drop(image);
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let was_overlay =
        (0..OVERLAYS).any(|number| Path::new(&unsettled.overlays.path(number)) == absolute);
    let at = unsettled.bring_together(&journal, permitted)?;
    if was_overlay {
        let message = format!(
            "{} was an overlay, and what it held is at {} now: run the guest with that",
            path.display(),
            at.display()
        );
        return Err(refuse("disk.overlay", message));
    }
    Ok(Some(at))
}

/// Removes what lies beside the image at `path` as overlays of a move that is over, or never began, as the journal in `folder`
/// says: whoever followed it was killed.
pub fn remove_left_overlays(path: &Path, folder: &Path) {
    let beside = |number: u8| PathBuf::from(marks::overlay_path(path, number));
    let found: Vec<_> = (0..OVERLAYS)
        .map(beside)
        .filter(|path| path.exists())
        .collect();
    if found.is_empty() {
        return;
    }
    match FileJournal::open(folder) {
        Ok(journal) => remove_unneeded(found, &journal),
        Err(error) => {
            tracing::warn!(%error, "overlays beside {} are left", path.display());
        }
    }
}

/// Removes those of `paths` at which an image of no more use lies; what is none is left alone.
fn remove_unneeded(paths: impl IntoIterator<Item = PathBuf>, journal: &dyn Journal) {
    for path in paths {
        if let Ok(found) = left_over(&path, journal)
            && let Err(error) = found.remove(&path)
        {
            tracing::warn!(%error, path = %path.display(), "an image of no more use is left");
        }
    }
}

fn format(is: ImageFormat) -> Format {
    match is {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow2 => Format::Qcow2,
    }
}

/// Where files below the images may lie.
fn rules(overlays: &Overlays, permitted: &[PathBuf]) -> BackingRules {
    let own = [&overlays.old, &overlays.new, &overlays.beginning];
    let own = own.into_iter().filter_map(|path| path.parent());
    BackingRules {
        permitted: own
            .map(Path::to_owned)
            .chain(permitted.iter().cloned())
            .collect(),
    }
}

impl Unsettled {
    fn bring_together(
        self,
        journal: &FileJournal,
        permitted: &[PathBuf],
    ) -> Result<PathBuf, Observation> {
        let Self {
            id,
            overlay,
            overlays,
            record,
        } = self;
        let (at, is, handover) = match overlay.base {
            OverlayBase::Old => (&overlays.old, overlays.old_is, Handover::Kept),
            OverlayBase::New => (&overlays.new, overlays.new_is, Handover::Gone),
        };
        let failed = failed(at);
        let claimed = |e: block::Error| Observation::from_error(Side::Client, "disk.claim", &e);
        let rules = rules(&overlays, permitted);
        let base = Image::open(at, Access::ReadWrite, format(is), Content::Raw, &rules);
        let base = base.map_err(&failed)?;
        let base_claim = base.claim().map_err(claimed)?;
        // Whole again, if it was being written, before it is read below the overlay.
        base.begin_use().map_err(&failed)?;
        base.device().flush().map_err(&failed)?;
        let top = PathBuf::from(overlays.path(overlay.number));
        let top = Qcow2Image::open(&top, Access::ReadWrite, &rules).map_err(&failed)?;
        let top_claim = top.file().claim().map_err(claimed)?;
        top.begin_use().map_err(&failed)?;
        let mut ranges = top.own_ranges().map_err(&failed)?;
        ranges.extend(of_the_one_below(&top, &overlays, &rules).map_err(&failed)?);
        let top: Arc<dyn BlockDevice> = Arc::new(top);
        let nothing = Arc::new(ChangeMap::new(top.size()));
        let mut copy = Copy::new(top, base.device(), nothing);
        let copied = copy.ranges(&ranges, &Steering::new(None, Duration::ZERO));
        copied.and_then(|_| copy.flush()).map_err(|e| {
            let why = Observation::from_error(Side::Client, "disk.io", &e);
            let message = format!(
                "what is in overlays cannot be brought to {}: it stays as it is until the guest is run again",
                at.display()
            );
            refuse("disk.overlay", message).caused_by(why)
        })?;
        let record = SourceRecord {
            handover,
            overlay: None,
            ..record
        };
        journal
            .record(id, &record)
            .map_err(|e| Observation::from_error(Side::Client, "migration.journal", &e))?;
        marks::remove(base.file()).map_err(&failed)?;
        drop(copy);
        let numbers = (0..OVERLAYS).map(|number| PathBuf::from(overlays.path(number)));
        drop((top_claim, base_claim));
        remove_unneeded(numbers.chain([overlays.new.clone()]), journal);
        Ok(at.clone())
    }
}

/// What lies in the other overlay of the chain below `top`, if there is one.
fn of_the_one_below(
    top: &Qcow2Image,
    overlays: &Overlays,
    rules: &BackingRules,
) -> block::Result<Vec<Range<u64>>> {
    let mut numbers = (0..OVERLAYS).map(|number| PathBuf::from(overlays.path(number)));
    let below = top.below().first().map(|below| below.path().to_owned());
    let is_below = |path: &PathBuf| path.canonicalize().ok() == below;
    match numbers.find(|path| below.is_some() && is_below(path)) {
        None => Ok(Vec::new()),
        Some(path) => {
            let image = Qcow2Image::open(&path, Access::ReadOnly, rules)?;
            image.begin_use()?;
            image.own_ranges()
        }
    }
}
