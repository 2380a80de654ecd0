//! A disk that a guest begins with before it is whole: a move on demand whose process ended goes on.

use std::sync::Arc;
use std::time::Instant;

use block::on_demand::Pull;
use control::disk_move::{DiskMoveMode, DiskMoveReport};

use super::on_demand::Fetched;
use super::{MoveError, millis};
use crate::disks::lacking::Lacking;
use crate::disks::marks;
use crate::machine::Machine;

/// Has what the disk lacks come, as the end of the move that it is of: what was done, and why it is not whole, if it is not.
pub(crate) fn go_on(
    machine: &Arc<Machine>,
    lacking: Lacking,
) -> (DiskMoveReport, Result<(), MoveError>) {
    let began = Instant::now();
    let missing = lacking.layer.status().missing_bytes;
    let image = machine.devices().disks.image(&lacking.disk);
    let path = |image: &block::image::Image| image.file().path().display().to_string();
    let mut report = DiskMoveReport {
        mode: DiskMoveMode::OnDemand,
        from: lacking.from.display().to_string(),
        to: image.as_ref().map(path).unwrap_or_default(),
        size_bytes: lacking.layer.about().disk,
        allocated_bytes: missing,
        ..DiskMoveReport::default()
    };
    lacking.layer.set_pull(Pull::Background);
    let fetched = Fetched {
        machine,
        disk: &lacking.disk,
        layer: &lacking.layer,
        steering: &lacking.steering,
    };
    let moved = fetched.to_the_end(lacking.bare, &report.from);
    if moved.is_ok() {
        if let Err(error) = lacking.claim.release() {
            tracing::warn!(disk = %lacking.disk, %error, "the claim on the old image could not be released");
        }
        let removed = image.map_or(Ok(()), |image| marks::remove(image.file()));
        if let Err(error) = removed {
            tracing::warn!(disk = %lacking.disk, %error, "the new image stays marked as one that is being made");
        }
    }
    report.copied_bytes = lacking.layer.status().fetched_bytes;
    report.class_bytes.background = report.copied_bytes;
    report.total_ms = millis(began.elapsed());
    (report, moved)
}
