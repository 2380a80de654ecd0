//! A disk that moves to another image on its host while its guest runs: how it is asked for, and how it went.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub use migration::disk_bytes::ClassBytes;
pub use migration::disk_modes::StorageReach;
use migration::units::{Rate, Span};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::passed::{FileId, PassedFile};

/// Format of the image that a disk moves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// Its bytes are those of the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// What the image holds that a disk moves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetContent {
    /// Zeroes: it was made for this.
    Blank,
    /// Anything, which is written over.
    Anything,
}

/// How the content of a disk gets to its new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMoveMode {
    /// It is copied; what is written meanwhile is copied again, until the rest fits the time that requests may wait.
    #[default]
    Precopy,
    /// What is written goes to both images, and the rest is copied beside that: it ends however much is written.
    Mirror,
    /// It goes over at once, and what it lacks is read from the old image: what is asked for first, then all the rest.
    OnDemand,
    /// It stays as it is while it is copied, and the guest goes on in an overlay; then what is in overlays is brought to the
    /// copy, in rounds.
    Snapshot,
}

/// Whether a disk that has gone over reads what nobody has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskPull {
    /// All of it, in the background.
    #[default]
    Background,
    /// Nothing, until the job is told to go on.
    Off,
}

impl DiskPull {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for DiskPull {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "background" => Ok(Self::Background),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is neither background nor off")),
        }
    }
}

impl fmt::Display for DiskPull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Background => "background",
            Self::Off => "off",
        })
    }
}

impl DiskMoveMode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for DiskMoveMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "precopy" => Ok(Self::Precopy),
            "mirror" => Ok(Self::Mirror),
            "snapshot" => Ok(Self::Snapshot),
            "on-demand" => Ok(Self::OnDemand),
            _ => Err(format!(
                "there is no mode {text:?}: precopy, mirror, snapshot and on-demand are"
            )),
        }
    }
}

impl fmt::Display for DiskMoveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Precopy => "precopy",
            Self::Mirror => "mirror",
            Self::OnDemand => "on-demand",
            Self::Snapshot => "snapshot",
        })
    }
}

/// What becomes of a disk that is written faster than it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnNotConverging {
    /// It stays where it is.
    #[default]
    Fail,
    /// It goes on by [`DiskMoveMode::Mirror`], from where it is.
    Mirror,
}

impl FromStr for OnNotConverging {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(Self::Fail),
            "mirror" => Ok(Self::Mirror),
            _ => Err(format!("{text:?} is neither mirror nor fail")),
        }
    }
}

/// What becomes of a mirrored disk whose new image cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnTargetError {
    /// The move fails, and the disk stays where it is.
    #[default]
    Drop,
    /// The move is paused, and the guest goes on; what the image misses is copied when the move is told to go on.
    Stop,
}

impl FromStr for OnTargetError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "drop" => Ok(Self::Drop),
            "stop" => Ok(Self::Stop),
            _ => Err(format!("{text:?} is neither drop nor stop")),
        }
    }
}

/// How a disk is moved, with what is said where a mode has more than one way to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskMoveHow {
    /// The mode that it begins with.
    pub mode: DiskMoveMode,
    /// Of precopy; absent is [`OnNotConverging::Fail`].
    pub on_not_converging: Option<OnNotConverging>,
    /// Of mirror; absent is [`OnTargetError::Drop`].
    pub on_target_error: Option<OnTargetError>,
    /// Of mirror.
    pub writes: Rate,
}

impl DiskMoveHow {
    /// Checks that nothing is said that would mean nothing.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.mode == DiskMoveMode::Mirror && self.on_not_converging.is_some() {
            return Err("a mirror always ends: on-not-converging is of precopy".into());
        }
        let may_mirror = self.may_mirror();
        if self.on_target_error.is_some() && !may_mirror {
            return Err("on-target-error is of mirror, and this move never is one".into());
        }
        if !self.writes.is_unlimited() && !may_mirror {
            return Err("writes is of mirror, and this move never is one".into());
        }
        Ok(())
    }

    /// Whether it is a mirror, or may become one.
    pub fn may_mirror(&self) -> bool {
        self.mode == DiskMoveMode::Mirror || self.on_not_converging == Some(OnNotConverging::Mirror)
    }
}

/// What becomes of the overlay in which a guest goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverlayEnd {
    /// It is brought to the new image, which is the disk then.
    #[default]
    Consolidated,
    /// It stays the disk, over the new image.
    Kept,
}

/// The overlays of a move by snapshot, which were made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlayRequest {
    /// Three empty qcow2 images over the image that the disk has, as they were passed, in their order: regular files, open
    /// to be read and written.
    #[schema(value_type = Vec<String>)]
    pub files: Vec<FileId>,
    /// What their paths begin with; that of number N goes on with `.overlay-N.qcow2`.
    pub beginning: String,
    /// Who can reach their storage.
    pub reach: StorageReach,
    /// Bytes that there are for them: a move whose overlays are forecast to take more does not begin.
    pub room_bytes: u64,
    /// What becomes of the last one.
    #[serde(default)]
    pub end: OverlayEnd,
}

/// What is passed with a block device that a disk is to move to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// The device once more, open exclusively (`O_EXCL`), to be read: as long as a VM has that nobody mounts it.
    #[schema(value_type = String)]
    pub exclusive: FileId,
    /// The file that it shows from beginning to end, if it is a loop device and that can be opened, to be read and written: it
    /// is locked with the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub below: Option<FileId>,
}

/// A move of a disk as its user asks for it; as JSON, the body of `POST /vm/disks/ID/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMoveRequest {
    /// Identifier of the move, 32 hexadecimal digits that nobody has used: the one with which the image is marked.
    pub id: String,
    /// The image, as it was passed: a regular file or block device, open to be read and written.
    #[schema(value_type = String)]
    pub file: FileId,
    /// The same raw image once more, open past the page cache (`O_DIRECT`), to be read and written; a disk that does without the
    /// page cache needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub direct: Option<FileId>,
    /// What is passed with a block device; absent for a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceRequest>,
    /// Absolute path of the image.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// What it holds.
    pub content: TargetContent,
    /// Who can reach its storage.
    pub reach: StorageReach,
    /// How it is moved.
    #[serde(default, skip_serializing_if = "DiskMoveMode::is_default")]
    pub mode: DiskMoveMode,
    /// What is done where precopy does not converge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_not_converging: Option<OnNotConverging>,
    /// What is done where the new image of a mirror cannot be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_target_error: Option<OnTargetError>,
    /// The presence map, as it was passed: a regular file beside the image, open to be read and written, as long as that of
    /// the disk is. For mode on-demand, and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub map: Option<FileId>,
    /// Whether what nobody asks for is read, in mode on-demand.
    #[serde(default, skip_serializing_if = "DiskPull::is_default")]
    pub pull: DiskPull,
    /// The overlays, of a move by snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlays: Option<OverlayRequest>,
    /// Most that is read of the disk; absent or 0 is unlimited.
    #[serde(
        rename = "bandwidth_bytes_per_s",
        default,
        skip_serializing_if = "Rate::is_unlimited"
    )]
    #[schema(value_type = Option<u64>)]
    pub bandwidth: Rate,
    /// Most that the guest may write to the disk in a second while it is mirrored; absent or 0 is unlimited.
    #[serde(
        rename = "writes_bytes_per_s",
        default,
        skip_serializing_if = "Rate::is_unlimited"
    )]
    #[schema(value_type = Option<u64>)]
    pub writes: Rate,
    /// Longest that the guest's requests to the disk may wait when it goes over.
    #[serde(rename = "downtime_limit_ms", default = "default_downtime")]
    #[schema(value_type = u64)]
    pub downtime_limit: Span,
}

impl DiskMoveRequest {
    /// How it is moved.
    pub fn how(&self) -> DiskMoveHow {
        DiskMoveHow {
            mode: self.mode,
            on_not_converging: self.on_not_converging,
            on_target_error: self.on_target_error,
            writes: self.writes,
        }
    }
}

/// The files that are passed with a block device.
#[derive(Debug)]
pub struct DeviceFiles {
    /// Its exclusive open.
    pub exclusive: PassedFile,
    /// The file that it shows.
    pub below: Option<PassedFile>,
}

/// The files of a move, as they were passed.
#[derive(Debug)]
pub struct DiskMoveFiles {
    /// The new image.
    pub image: PassedFile,
    /// The same past the page cache.
    pub direct: Option<PassedFile>,
    /// What is passed with a block device.
    pub device: Option<DeviceFiles>,
    /// Its presence map, where it gets one.
    pub map: Option<PassedFile>,
    /// The overlays, in their order.
    pub overlays: Vec<PassedFile>,
}

/// Longest that the guest's requests may wait unless somebody says otherwise.
pub const DOWNTIME_LIMIT: Duration = Duration::from_millis(100);

fn default_downtime() -> Span {
    Span(DOWNTIME_LIMIT)
}

/// What was done to move a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskMoveReport {
    /// The mode that it ended in.
    pub mode: DiskMoveMode,
    /// Path of the image that the disk had before.
    pub from: String,
    /// Path of the one that it was, or was to be, moved to.
    pub to: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Bytes that it held when the move began.
    pub allocated_bytes: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// All that went to the new image, by class.
    pub class_bytes: ClassBytes,
    /// Passes over the disk, the last one while requests waited among them.
    pub passes: u32,
    /// Bytes that were copied while requests waited.
    pub last_bytes: u64,
    /// How long requests of the guest waited when the disk went over, in microseconds; 0 where it did not.
    pub io_pause_us: u64,
    /// How often it was tried to go over, and more was left than may be.
    pub retries: u32,
    /// Time from its beginning to its end.
    pub total_ms: u64,
    /// How often what was in an overlay was brought to the new image while the guest went on in another, of a move by
    /// snapshot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rounds: u32,
    /// How long requests waited each time that the guest went over from one image to another, in microseconds: to the first
    /// overlay, to each one after it, and to the new image. Of a move by snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses_us: Vec<u64>,
    /// Bytes that the overlays were forecast to take.
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub forecast_bytes: u64,
    /// Most bytes that the overlays took at any time.
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub overlay_bytes: u64,
    /// Bytes a second to which the guest's writes were slowed in the end; 0 where they were not.
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub slowed_to: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_zero_bytes(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_mean_nothing_is_refused() {
        use DiskMoveMode::{Mirror, Precopy};
        let cases = [
            (Precopy, None, None, true),
            (Precopy, Some(OnNotConverging::Mirror), None, true),
            (
                Precopy,
                Some(OnNotConverging::Mirror),
                Some(OnTargetError::Stop),
                true,
            ),
            (Precopy, None, Some(OnTargetError::Drop), false),
            (
                Precopy,
                Some(OnNotConverging::Fail),
                Some(OnTargetError::Drop),
                false,
            ),
            (Mirror, None, Some(OnTargetError::Stop), true),
            (Mirror, Some(OnNotConverging::Fail), None, false),
        ];
        for (mode, on_not_converging, on_target_error, fits) in cases {
            let how = DiskMoveHow {
                mode,
                on_not_converging,
                on_target_error,
                writes: Rate::default(),
            };
            assert_eq!(how.check().is_ok(), fits, "{how:?}");
        }
        for (mode, fits) in [(Mirror, true), (Precopy, false)] {
            let how = DiskMoveHow {
                mode,
                on_not_converging: None,
                on_target_error: None,
                writes: Rate(Some(1)),
            };
            assert_eq!(how.check().is_ok(), fits, "{how:?}");
        }
    }

    #[test]
    fn modes_are_what_they_are_called() {
        use DiskMoveMode::{Mirror, OnDemand, Precopy, Snapshot};
        for mode in [Precopy, Mirror, Snapshot, OnDemand] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let refused = "copy".parse::<DiskMoveMode>().unwrap_err();
        assert!(refused.contains("copy"), "{refused}");
    }
}
