//! Disks of which a part may be fetched when their guest has gone: what a request has to say of them.

use migration::disk_modes::{self, AfterMove, DiskMode, DiskModes};
use migration::observation::Observation;
use migration::progress::TimeoutAction;
use migration::request::MigrateRequest;

use crate::build::spec::{DiskAccess, DiskSpec};
use crate::instance::vm::refuse;

/// Checks that somebody serves those disks of a guest that may be fetched when it has gone.
///
/// # Errors
/// `usage.disks`.
pub(super) fn check_later(
    request: &MigrateRequest,
    modes: &DiskModes,
    disks: &[DiskSpec],
) -> Result<(), Observation> {
    let wrong = |what: String| Err(refuse("usage.disks", what));
    let is_read_only = |id: &str| {
        let disk = disks.iter().find(|disk| disk.id == id);
        disk.is_some_and(|disk| disk.access == DiskAccess::ReadOnly)
    };
    let later = modes.iter().filter(|(id, mode)| match mode {
        DiskMode::Precopy => request.may_go_on_demand(*mode) && !is_read_only(id),
        _ => request.may_go_on_demand(*mode),
    });
    let mut any = false;
    for (id, _) in later {
        any = true;
        if is_read_only(id) {
            return wrong(format!(
                "disk {id} is read-only, and does not go on demand: have it go by precopy"
            ));
        }
        let chosen = disk_modes::chosen(&request.disks, id);
        if chosen.is_some_and(|chosen| chosen.after == AfterMove::Delete) {
            return wrong(format!(
                "after=delete does not go with --on-timeout on-demand: the destination may need the image of disk {id} until that is \
                 whole there"
            ));
        }
        if !request.plan && !request.served.iter().any(|served| served.disk == *id) {
            return wrong(format!(
                "nobody is there to serve disk {id} when its guest has gone: vmm migrate starts such a process"
            ));
        }
    }
    if request.on_timeout == TimeoutAction::OnDemand && !any {
        return wrong(
            "--on-timeout on-demand is for disks that go by precopy: name such, as --disks precopy, or leave it out".into(),
        );
    }
    Ok(())
}
