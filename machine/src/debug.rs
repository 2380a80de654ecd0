//! What only whoever tests this program asks for.

use std::path::Path;

use block::control_file::ControlFile;
use migration::observation::{Observation, Side};

/// Names a file that orders faults of disks, see [`block::control_file`].
const DISK_FAULTS_VARIABLE: &str = "VMM_DEBUG_DISK_FAULTS";

/// What this host is taken for, so that two of a machine pass for two machines.
const BOOT_ID_VARIABLE: &str = "VMM_DEBUG_BOOT_ID";
/// Where the kernel tells which of its boots this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which host this is, to processes of others: the boot of its kernel, unless another was named. Asked
/// where the process may open files.
pub(crate) fn host() -> Option<String> {
    if let Ok(named) = std::env::var(BOOT_ID_VARIABLE) {
        tracing::warn!("this host is taken for {named}, as {BOOT_ID_VARIABLE} says");
        return Some(named);
    }
    let read = std::fs::read_to_string(BOOT_ID);
    read.ok().map(|id| id.trim_end().to_owned())
}

/// The file that orders faults of disks, if this process was given one. Opened at the start, when the
/// process may still open files.
pub(crate) fn disk_faults(side: Side) -> Result<Option<ControlFile>, Observation> {
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
