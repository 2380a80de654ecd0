//! Why the move of a disk came to nothing.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use block::copy::CopyError;
use migration::journal::JournalError;
use migration::observation::{Observation, Side};

use crate::error::MachineError;

/// Why a move came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Machine(Box<MachineError>),
    #[error(transparent)]
    Device(#[from] devices::Error),
    #[error("it cannot be recorded which image is the disk")]
    Journal(#[from] JournalError),
    #[error("the old image cannot be read")]
    Origin(#[source] block::on_demand::OriginError),
    #[error("it cannot be kept what of the disk is in the new image")]
    Map(#[source] block::Error),
    #[error("the path of the old image is too long for a presence map")]
    LongPath,
    #[error(
        "the disk has gone over, and {missing} bytes of it are still in {from} alone, which must stay as it is: vmm disk pull \
         with the path of the new image brings them there when the guest has ended"
    )]
    InPart {
        missing: u64,
        from: String,
        #[source]
        why: Box<MoveError>,
    },
    #[error("the new image has been removed meanwhile")]
    Removed,
    #[error("the old image cannot be marked")]
    Mark(#[source] block::Error),
    #[error(
        "the storage of {path} has no marks (extended attributes of users), which would tell that the disk goes on in an \
         overlay: move it by --mode precopy"
    )]
    NoMarks { path: PathBuf },
    #[error("an overlay cannot be made or used")]
    Overlay(#[source] block::Error),
    #[error(
        "the overlays are forecast to take {forecast} bytes, as the guest writes now, and there are {room} for them"
    )]
    OverlaysTooLarge { forecast: u64, room: u64 },
    #[error("there is no room for what the guest writes to the overlay {path}")]
    OverlayFull { path: PathBuf },
    #[error(
        "the disk goes on in the overlay {overlay}, as it could not be brought back to its image: when the guest has ended, \
         `vmm run` brings both together again"
    )]
    InOverlay {
        overlay: PathBuf,
        source: Box<MoveError>,
    },
    #[error(
        "the disk is written faster than it is copied: {left} bytes are left after each pass, and requests would have \
         to wait for {forecast:?} at the end, which may be {limit:?}"
    )]
    NotConverging {
        left: u64,
        forecast: Duration,
        limit: Duration,
    },
    #[error(
        "the storage of the new image takes {forecast:?} to make durable what was written, and requests may wait for {limit:?}"
    )]
    SlowFlush { forecast: Duration, limit: Duration },
}

impl From<MachineError> for MoveError {
    fn from(error: MachineError) -> Self {
        Self::Machine(Box::new(error))
    }
}

impl MoveError {
    /// Whether the disk is not where it was all the same, as its record says: then nothing leads back.
    pub(super) fn is_past_the_record(&self) -> bool {
        matches!(self, Self::InPart { .. } | Self::InOverlay { .. })
    }

    fn id(&self) -> &'static str {
        match self {
            Self::Copy(CopyError::Cancelled) => "job.cancelled",
            Self::Copy(CopyError::Source(_)) => "disk.read",
            Self::Copy(CopyError::Target(error)) if error.is_no_room() => "disk.no-room",
            Self::Copy(CopyError::Target(error)) if is_late(error) => "disk.target-hangs",
            Self::Copy(CopyError::Target(_)) => "disk.write",
            Self::Copy(CopyError::TooMuch { .. })
            | Self::NotConverging { .. }
            | Self::SlowFlush { .. } => "disk.not-converging",
            Self::Machine(error) => error.id(),
            Self::Device(devices::Error::Hangs { .. }) => "disk.hangs",
            Self::Device(devices::Error::Flush { .. }) => "disk.flush",
            Self::Device(_) => "machine.device",
            Self::NoMarks { .. } => "disk.no-marks",
            Self::Overlay(_) => "disk.overlay",
            Self::OverlayFull { .. } | Self::OverlaysTooLarge { .. } => "disk.no-room",
            Self::InOverlay { .. } => "disk.in-overlay",
            Self::Journal(_) => "migration.journal",
            Self::Mark(_) => "disk.mark",
            Self::Origin(_) => "disk.read",
            Self::Map(_) | Self::LongPath => "disk.map",
            Self::InPart { .. } => "disk.in-part",
            Self::Removed => "disk.target",
        }
    }

    /// Whether the new image failed, and nothing else.
    pub(super) fn is_of_new_image(&self) -> bool {
        matches!(
            self,
            Self::Copy(CopyError::Target(_)) | Self::Device(devices::Error::Flush { .. })
        )
    }

    /// The observation that is made of it.
    pub(crate) fn observed(&self) -> Observation {
        Observation::from_error(Side::Source, self.id(), self)
    }
}

fn is_late(error: &block::Error) -> bool {
    matches!(error, block::Error::Io { source, .. } if source.kind() == ErrorKind::TimedOut)
}
