//! The overlays in which guests go on whose disks move with them by snapshot: made before the move, passed to the VM, and removed
//! after it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use control::api::client::Client;
use control::exit::local;
use control::instance::{DiskStatus, VmStatus};
use control::passed::{FileAccess, FileKind, FileNote, Passer};
use control::runtime_dir::RuntimeDir;
use machine::OverlayTargets;
use machine::disk_target::{Overlays as Paths, Passed};
use migration::MigrationId;
use migration::disk_modes::{self, DiskMode};
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::request::{DiskOverlays, MigrateRequest};

use super::storage_reach;

/// How long the VM may hold overlays that nobody needs any more.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// Those of one move.
pub(super) struct Overlays {
    journal: FileJournal,
    made: Vec<Passed>,
    /// The VM keeps the files as long as these are there, until a request names them.
    passers: Vec<Passer>,
}

impl Overlays {
    /// Makes and passes those of each disk of the VM, whose status this is, that moves by snapshot as `request` says; and says so
    /// in the request.
    ///
    /// # Errors
    /// When they cannot be made, or the VM does not take them; none is left then.
    pub(super) async fn make(
        request: &mut MigrateRequest,
        status: &VmStatus,
        client: &Client,
        runtime: &RuntimeDir,
    ) -> Result<Self, Observation> {
        let migrations = runtime
            .migrations()
            .ok_or_else(|| local("host.state-dir", "there is no folder for records of moves"))?;
        let journal = FileJournal::open(migrations)
            .map_err(|e| Observation::from_error(Side::Client, "migration.journal", &e))?;
        let mut overlays = Self {
            journal,
            made: Vec::new(),
            passers: Vec::new(),
        };
        let all = status.disks.iter().map(|disk| disk.id.as_str());
        let modes = disk_modes::modes(&request.disks, all)?;
        if request.plan {
            return Ok(overlays);
        }
        for (disk, (_, mode)) in status.disks.iter().zip(modes) {
            if mode != DiskMode::Snapshot || disk.read_only {
                continue;
            }
            match overlays.add(disk, client).await {
                Ok(made) => request.overlays.push(made),
                Err(why) => {
                    overlays.discard();
                    return Err(why);
                }
            }
        }
        Ok(overlays)
    }

    async fn add(
        &mut self,
        disk: &DiskStatus,
        client: &Client,
    ) -> Result<DiskOverlays, Observation> {
        let job = MigrationId::random()
            .map_err(|e| local("host.resources", format!("draw an identifier: {e}")))?;
        let image = Path::new(&disk.path);
        let paths = Paths {
            beginning: image.to_owned(),
            old: image.to_owned(),
            old_is: disk.format,
            new: image.to_owned(),
            new_is: disk.format,
        };
        let room = OverlayTargets::room(&paths, 0)?;
        let targets = OverlayTargets::create(&paths, disk.size_bytes, job, &self.journal)?;
        let reach = storage_reach::told(targets.reach());
        let passed = async {
            let mut passer = client.passer().await?;
            let files = targets.all().iter().map(|target| {
                let note = FileNote {
                    kind: FileKind::Disk,
                    access: FileAccess::ReadWrite,
                    name: target.path().display().to_string(),
                };
                (note, std::os::fd::AsFd::as_fd(target.file()))
            });
            let passed = passer.pass(&files.collect::<Vec<_>>()).await?;
            Ok::<_, Observation>((passer, passed))
        };
        let passed = passed.await;
        // Closes the files, which the VM shares: they would keep the claims on them alive.
        self.made.extend(targets.passed());
        let (passer, files) = passed?;
        self.passers.push(passer);
        Ok(DiskOverlays {
            disk: disk.id.clone(),
            job: job.to_string(),
            files: files.iter().map(ToString::to_string).collect(),
            beginning: disk.path.clone(),
            reach,
            room_bytes: room,
        })
    }

    /// Removes those that nobody needs any more.
    pub(super) fn discard(&mut self) {
        self.passers.clear();
        let until = Instant::now() + PATIENCE;
        for overlay in &self.made {
            overlay.discard(&self.journal);
            while overlay.is_there() && Instant::now() < until {
                thread::sleep(LOOK);
                overlay.discard(&self.journal);
            }
        }
    }
}
