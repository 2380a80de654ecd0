//! Waits until a disk lacks nothing.

use std::path::Path;
use std::time::Duration;

use block::on_demand::{OnDemand, Status, Supply};
use migration::observation::Observation;

use super::map_file::{failed, in_part};

/// How often it is told how far it is, and that made durable.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until nothing is missing of the disk at `path` and that is durable; `told` is called now and then.
///
/// # Errors
/// `disk.in-part` when what is missing never comes, and when it cannot be made durable.
pub(super) fn fill(
    path: &Path,
    disk: &OnDemand,
    told: &mut dyn FnMut(&Status),
) -> Result<(), Observation> {
    let kept = || disk.finish().map_err(|e| failed(path, &e));
    while !disk.wait_whole(LOOK) {
        let status = disk.status();
        told(&status);
        if let Supply::Wrong(why) = status.supply {
            kept()?;
            return Err(in_part(path, why));
        }
        // Whoever is killed asks again for what came since.
        kept()?;
    }
    match kept()? {
        0 => Ok(()),
        missing => Err(in_part(path, format!("{missing} bytes are missing"))),
    }
}
