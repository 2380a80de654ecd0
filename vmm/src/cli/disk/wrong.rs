//! What can be wrong with an image, or with what is asked of it.

use block::Error;
use control::exit::local;
use migration::observation::{Observation, Side};

/// What is wrong with an image.
pub(super) fn observed(error: &Error) -> Observation {
    let id = match error {
        Error::Qcow2 { .. } => "disk.format",
        Error::Exists { .. } => "disk.exists",
        Error::Size { .. } => "disk.not-resized",
        _ => "disk.open",
    };
    Observation::from_error(Side::Client, id, error)
}

/// Options that do not go together.
pub(super) fn usage(message: &str) -> Observation {
    local("usage.disk", message)
}
