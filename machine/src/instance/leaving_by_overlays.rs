//! The disks of a guest that leaves by way of overlays: what whoever asks has made for that.

use std::sync::Arc;

use block::copy::{Steering, Target};
use control::disk_move::OverlayEnd;
use control::passed::PassedFile;
use migration::MigrationId;
use migration::disk_modes::{DiskMode, DiskModes};
use migration::journal::{FileJournal, Journal};
use migration::observation::{Observation, Side};
use migration::progress::TimeoutAction;
use migration::request::MigrateRequest;

use crate::disks::marks::Mark;
use crate::instance::disk_move_mode::{checked_path, reached};
use crate::instance::vm::{VmInstance, refuse};
use crate::machine::Machine;
use crate::moving::disk_move::snapshot::files::OverlayFiles;
use crate::moving::disk_move::snapshot::with_guest::WithGuest;
use crate::moving::disk_move::{DiskMove, Mode};

impl VmInstance {
    /// How each disk goes that is to go by snapshot, with the overlays that were passed.
    ///
    /// # Errors
    /// `usage.disks` for what cannot go so, or without overlays; what [`OverlayFiles::take`] says of these.
    pub(super) fn ways(
        &self,
        machine: &Arc<Machine>,
        modes: &DiskModes,
        request: &MigrateRequest,
        overlays: Vec<Vec<PassedFile>>,
    ) -> Result<Vec<Arc<WithGuest>>, Observation> {
        let wrong = |what: String| Err(refuse("usage.disks", what));
        let mut going = modes.iter().filter(|(_, mode)| *mode == DiskMode::Snapshot);
        if request.on_timeout == TimeoutAction::Mirror && going.clone().next().is_some() {
            return wrong(
                "on-timeout mirror does not go with snapshot, whose guest is in an overlay by then: have the disk go by mirror".into(),
            );
        }
        let mut passed: Vec<_> = request.overlays.iter().zip(overlays).collect();
        if let Some(other) = request
            .overlays
            .iter()
            .find(|of| !going.clone().any(|(id, _)| *id == of.disk))
        {
            let what = format!(
                "disk {} does not go by snapshot, and has overlays",
                other.disk
            );
            return wrong(what);
        }
        if request.plan {
            return Ok(Vec::new());
        }
        going.try_fold(Vec::new(), |mut ways, (id, _)| {
            let found = passed.iter().position(|(of, _)| of.disk == *id);
            let Some(found) = found else {
                return wrong(format!(
                    "there are no overlays for disk {id}, which is to go by snapshot: vmm migrate makes them"
                ));
            };
            let (of, files) = passed.swap_remove(found);
            let job: MigrationId = of
                .job
                .parse()
                .map_err(|e| Observation::from_error(Side::Source, "usage.job-id", &e))?;
            let image = machine.devices().disks.find(id);
            let image =
                image.ok_or_else(|| refuse("disk.unknown", format!("the guest has no disk {id}")))?;
            if image.image().device().read_only() {
                return wrong(format!(
                    "disk {id} is read-only, and needs no overlay: have it go by precopy"
                ));
            }
            let journal = FileJournal::open(self.dir.migrations())
                .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
            // As whoever made the overlays has marked them.
            let path = image.image().file().path().display().to_string();
            let made = Mark::of_disk_move(job, journal.identity(), &path);
            let how = (reached(of.reach), OverlayEnd::Consolidated, of.room_bytes);
            let beginning = checked_path(&of.beginning)?;
            let files = OverlayFiles::take(files, beginning, how, (&image, &image), &made)?;
            let moving = DiskMove {
                machine: machine.clone(),
                id: job,
                mark: Mark::of_disk_move(job, journal.identity(), &request.to),
                journal,
                record_cost: std::time::Duration::ZERO,
                content: Target::Holds,
                // The migration copies; only what it records and where overlays are is of this move.
                mode: Mode::Precopy,
                on_not_converging: Default::default(),
                on_target_error: Default::default(),
                told: Arc::default(),
                steering: Arc::new(Steering::new(request.bandwidth.0, request.downtime_limit.0)),
                writes: Arc::default(),
            };
            ways.push(Arc::new(WithGuest::new(moving, files, image, &request.to)));
            Ok(ways)
        })
    }
}
