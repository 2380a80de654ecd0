//! What only whoever tests this program asks for.

use std::path::Path;

use block::control_file::ControlFile;
use migration::observation::{Observation, Side};

/// Names a file that orders faults of disks, see [`block::control_file`].
const DISK_FAULTS_VARIABLE: &str = "VMM_DEBUG_DISK_FAULTS";

/// The file that orders faults of disks, if this process was given one. Opened at the start, when the
/// process may still open files.
pub(super) fn disk_faults(side: Side) -> Result<Option<ControlFile>, Observation> {
    let Some(path) = std::env::var_os(DISK_FAULTS_VARIABLE) else {
        return Ok(None);
    };
    let orders = ControlFile::open(Path::new(&path)).map_err(|e| {
        let what = format!("cannot open what {DISK_FAULTS_VARIABLE} names");
        let cause = Observation::from_error(side, "usage.debug", &e);
        Observation::new(side, "usage.debug", what).caused_by(cause)
    })?;
    tracing::warn!("disks fail as {DISK_FAULTS_VARIABLE} orders");
    Ok(Some(orders))
}
