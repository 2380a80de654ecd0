//! How a disk is to move, of what its user asks for and passes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Access, Below, BlockDevice, Content, ImageKind, RawImage, Reach};
use control::disk_move::{DeviceFiles, DiskMoveMode, DiskMoveRequest, StorageReach, TargetContent};
use control::passed::PassedFile;
use migration::observation::{Observation, Side};

use crate::disks::Disk;
use crate::disks::marks::Mark;
use crate::disks::opened_image::OpenedAs;
use crate::instance::vm::refuse;
use crate::moving::disk_move::Mode;
use crate::moving::disk_move::snapshot::files::OverlayFiles;

/// Who can reach storage, as the block layer calls it.
pub(super) fn reached(reach: StorageReach) -> Reach {
    match reach {
        StorageReach::ThisHost => Reach::ThisHost,
        StorageReach::OtherHosts => Reach::OtherHosts,
    }
}

/// What was passed with a block device, as the disk takes it.
pub(super) fn opened_as(device: DeviceFiles) -> OpenedAs {
    OpenedAs::Device {
        exclusive: device.exclusive.descriptor,
        below: device.below.map(|below| Below {
            file: File::from(below.descriptor),
            path: PathBuf::from(below.note.name),
        }),
    }
}

/// The mode in which a disk that is `before` is to become `next`, with what it needs: a presence map, or overlays.
///
/// # Errors
/// `usage.disk-map` and `usage.disk` when something is missing, or passed and not needed; and when it cannot be used.
pub(super) fn mode_of(
    request: &DiskMoveRequest,
    (map, overlays): (Option<PassedFile>, Vec<PassedFile>),
    (before, next): (&Disk, &Disk),
    mark: &Mark,
) -> Result<Mode, Observation> {
    let no_map = |what: &str| Err(refuse("usage.disk-map", what));
    if let (true, DiskMoveMode::Snapshot | DiskMoveMode::OnDemand) = (
        next.image().file().kind() == ImageKind::BlockDevice,
        request.mode,
    ) {
        let message = format!(
            "a disk moves to a block device by mode precopy or mirror, which keep it whole on one of the two at any moment; \
             the mode is {}",
            request.mode
        );
        return Err(refuse("usage.disk", message));
    }
    match (request.mode, map, &request.overlays) {
        (DiskMoveMode::Precopy, None, None) => Ok(Mode::Precopy),
        (DiskMoveMode::Mirror, None, None) => Ok(Mode::Mirror),
        (DiskMoveMode::Snapshot, None, Some(of)) => {
            let beginning = checked_path(&of.beginning)?;
            let how = (reached(of.reach), of.end, of.room_bytes);
            let files = OverlayFiles::take(overlays, beginning, how, (before, next), mark)?;
            Ok(Mode::Snapshot(Arc::new(files)))
        }
        (DiskMoveMode::OnDemand, None, None) => no_map("a move on demand needs a presence map"),
        (DiskMoveMode::OnDemand, Some(_), None) if request.content == TargetContent::Anything => {
            no_map("a move on demand needs an image that was made for it")
        }
        (DiskMoveMode::OnDemand, Some(map), None) => Ok(Mode::OnDemand {
            map: map_storage(request, map)?,
            pull: request.pull,
        }),
        (DiskMoveMode::Precopy | DiskMoveMode::Mirror | DiskMoveMode::Snapshot, Some(_), _) => {
            no_map("a move by copying has no presence map")
        }
        (mode, _, _) => Err(refuse(
            "usage.disk",
            format!("overlays are for mode snapshot, which needs them; the mode is {mode}"),
        )),
    }
}

fn map_storage(
    request: &DiskMoveRequest,
    map: PassedFile,
) -> Result<Arc<dyn BlockDevice>, Observation> {
    let storage = RawImage::from_opened(
        File::from(map.descriptor),
        PathBuf::from(format!("{}.vmm-map", request.path)),
        Access::ReadWrite,
        Content::Container,
        Reach::ThisHost,
    );
    let storage = storage.map_err(|e| Observation::from_error(Side::Source, "disk.map", &e))?;
    Ok(Arc::new(storage))
}

/// A path that an image may be told to lie at.
///
/// # Errors
/// `usage.disk-path`.
pub(super) fn checked_path(text: &str) -> Result<PathBuf, Observation> {
    let path = Path::new(text);
    if path.is_absolute() && !text.chars().any(char::is_control) && text.len() < 4096 {
        return Ok(path.to_owned());
    }
    let message = "the path of the new image is not absolute, too long, or cannot be shown";
    Err(refuse("usage.disk-path", message))
}
