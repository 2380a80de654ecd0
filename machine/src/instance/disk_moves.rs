//! Moves of the VM's disks to other images on this host.
//!
//! A disk moves while no migration runs, and the other way round: a migration tells its destination where the disks lie,
//! and that must not change under it. Which of them comes first is decided under the lock that knows both. Disks move
//! beside each other, each by itself.

use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block::copy::{Steering, Target};
use block::image::Format;
use control::disk_move::{
    DiskMoveFiles, DiskMoveMode, DiskMoveReport, DiskMoveRequest, ImageFormat, TargetContent,
};
use control::instance::{DiskStatus, VmState};
use migration::MigrationId;
use migration::journal::{FileJournal, Journal};
use migration::observation::{Observation, Side};

use crate::disks::Disk;
use crate::disks::marks::Mark;
use crate::disks::opened_image::{OpenedAs, OpenedImage};
use crate::disks::write_limit::WriteLimit;
use crate::instance::disk_move_mode::{checked_path, mode_of, opened_as, reached};
use crate::instance::running_move::{RunningMove, Watched};
use crate::instance::vm::{Core, VmInstance, refuse, wrong_state};
use crate::machine::Machine;
use crate::moving::disk_move::going_on::go_on;
use crate::moving::disk_move::{DiskMove, MoveError};
use crate::threads::{self, ThreadKind};

impl Core {
    /// Its disks, as they are now.
    pub(super) fn disks(&self) -> Vec<DiskStatus> {
        let machine = self.machine.as_ref();
        let disks = machine.into_iter().flat_map(|m| m.devices().disks.iter());
        disks.map(|disk| status_of(&disk)).collect()
    }

    /// That no disk of this VM, which is called `vm`, is being moved.
    ///
    /// # Errors
    /// `disk.moving`.
    pub(super) fn no_disk_moves(&self, vm: &str) -> Result<(), Observation> {
        match self.disk_moves.first() {
            None => Ok(()),
            Some(RunningMove { disk, job, .. }) => Err(refuse(
                "disk.moving",
                format!(
                    "disk {disk} is being moved to another image, by job {job}: wait for its end, or cancel it by vmm disk \
                     jobs {vm} --cancel {job}"
                ),
            )),
        }
    }
}

fn status_of(disk: &Disk) -> DiskStatus {
    let image = disk.image();
    DiskStatus {
        id: disk.id.clone(),
        path: image.file().path().display().to_string(),
        format: match image.format() {
            Format::Raw => ImageFormat::Raw,
            Format::Qcow2 => ImageFormat::Qcow2,
        },
        size_bytes: image.device().size(),
        read_only: image.device().read_only(),
        missing: disk.coming.as_ref().and_then(|coming| coming.missing()),
    }
}

impl VmInstance {
    /// Begins to move disk `id` on a thread of its own.
    pub(crate) fn move_disk_to(
        self: &Arc<Self>,
        id: &str,
        request: DiskMoveRequest,
        files: DiskMoveFiles,
    ) -> Result<(), Observation> {
        let job: MigrationId = request
            .id
            .parse()
            .map_err(|e| Observation::from_error(Side::Source, "usage.job-id", &e))?;
        let path = checked_path(&request.path)?;
        request
            .how()
            .check()
            .map_err(|why| refuse("usage.disk", why))?;
        let watched = Watched {
            steering: Arc::new(Steering::new(request.bandwidth.0, request.downtime_limit.0)),
            told: Arc::default(),
            writes: (request.how().may_mirror())
                .then(|| Arc::new(WriteLimit::of(request.writes.0))),
        };
        let machine = self.begin_disk_move(id, job, &request.path, &watched)?;
        let prepared = self.prepare(&machine, id, job, &request, path, files, watched);
        let (moving, next) = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                self.forget_disk_move(job);
                return Err(why);
            }
        };
        let moving = Arc::new(moving);
        self.on_a_thread(job, move || moving.run(next))
    }

    /// Has what the guest's disks lack come, each as the job that began it; they have just begun to run.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(super) fn bring_what_disks_lack(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
    ) -> Result<(), Observation> {
        for lacking in machine.devices().disks.take_lacking() {
            let (job, disk) = (lacking.job, lacking.disk.clone());
            let image = machine.devices().disks.image(&disk);
            let mut core = self.lock();
            let began = core.count_job();
            core.disk_moves.push(RunningMove {
                job,
                began,
                disk,
                to: image.map_or_else(String::new, |image| {
                    image.file().path().display().to_string()
                }),
                watched: Watched {
                    steering: lacking.steering.clone(),
                    told: Arc::default(),
                    writes: None,
                },
                given_up: None,
            });
            drop(core);
            let machine = machine.clone();
            self.on_a_thread(job, move || go_on(&machine, lacking))?;
        }
        Ok(())
    }

    /// Runs `job`, which is one of those that run, to its end.
    fn on_a_thread(
        self: &Arc<Self>,
        job: MigrationId,
        run: impl FnOnce() -> (DiskMoveReport, Result<(), MoveError>) + Send + 'static,
    ) -> Result<(), Observation> {
        let instance = self.clone();
        let spawned = thread::Builder::new()
            .name("disk-move".into())
            .spawn(move || {
                threads::begin(ThreadKind::DiskMove);
                let (report, moved) = match panic::catch_unwind(AssertUnwindSafe(run)) {
                    Ok((report, moved)) => (report, moved.map_err(|e: MoveError| e.observed())),
                    Err(_) => {
                        let why = refuse("job.worker", "the job ended unexpectedly");
                        (DiskMoveReport::default(), Err(why))
                    }
                };
                instance.end_disk_move(job, report, moved);
            });
        spawned.map(drop).map_err(|e| {
            self.forget_disk_move(job);
            Observation::from_error(Side::Source, "machine.thread", &e)
        })
    }

    /// Makes it one of those that run, if it may be.
    fn begin_disk_move(
        &self,
        id: &str,
        job: MigrationId,
        to: &str,
        watched: &Watched,
    ) -> Result<Arc<Machine>, Observation> {
        let mut core = self.lock();
        if let Some(machine) = &core.machine {
            machine.devices().disks.all_here()?;
        }
        if core.active().is_some() {
            let message = format!(
                "a migration of this VM is running: its disks stay where they are until it has ended, or is cancelled by vmm \
                 migrate {} --cancel",
                self.dir.name()
            );
            return Err(refuse("migration.active", message));
        }
        let machine = match (&core.machine, core.state) {
            (Some(machine), VmState::Running | VmState::Paused) => machine.clone(),
            (_, state) => return Err(wrong_state(state)),
        };
        if core.stopping || machine.ended() {
            return Err(wrong_state(VmState::Stopped));
        }
        let disk = machine.devices().disks.find(id);
        let disk =
            disk.ok_or_else(|| refuse("disk.unknown", format!("the guest has no disk {id}")))?;
        if disk.image().device().read_only() {
            let message =
                format!("disk {id} is only read: move its image, and start the guest anew");
            return Err(refuse("disk.read-only", message));
        }
        if let Some(other) = core.disk_moves.iter().find(|other| other.disk == id) {
            let message = format!("disk {id} is being moved already, by job {}", other.job);
            return Err(refuse("disk.moving", message));
        }
        if core.jobs().find(&job.to_string()).is_ok() {
            return Err(refuse(
                "job.exists",
                format!("there is a job {job} already"),
            ));
        }
        let began = core.count_job();
        core.disk_moves.push(RunningMove {
            job,
            began,
            disk: id.to_owned(),
            to: to.to_owned(),
            watched: watched.clone(),
            given_up: None,
        });
        Ok(machine)
    }

    /// Opens what was passed, and makes sure that it can become the disk; all refusals happen here.
    #[expect(
        clippy::too_many_arguments,
        reason = "a step of the one function that calls it"
    )]
    fn prepare(
        &self,
        machine: &Arc<Machine>,
        id: &str,
        job: MigrationId,
        request: &DiskMoveRequest,
        path: PathBuf,
        files: DiskMoveFiles,
        watched: Watched,
    ) -> Result<(DiskMove, Disk), Observation> {
        let journal = FileJournal::open(self.dir.migrations())
            .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        let before = machine.devices().disks.find(id);
        let before =
            before.ok_or_else(|| refuse("disk.unknown", format!("the guest has no disk {id}")))?;
        let format = match request.format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        };
        let DiskMoveFiles {
            image,
            direct,
            device,
            map,
            overlays,
        } = files;
        let opened = OpenedImage {
            file: File::from(image.descriptor),
            path: path.clone(),
            format,
            reach: reached(request.reach),
            direct: direct.map(|direct| File::from(direct.descriptor)),
            lies: device.map_or(OpenedAs::File, opened_as),
        };
        let next = Disk::from_opened(&before, opened).map_err(|e| e.observed(Side::Source))?;
        let (here, there) = (before.device().size(), next.device().size());
        if here != there {
            let message = format!(
                "disk {id} has {here} bytes, and {} has {there}",
                path.display()
            );
            return Err(refuse("disk.size", message));
        }
        // Claimed by now: who removes it does so while it has the claim itself.
        if !matches!(next.image().file().has_name(), Ok(true)) {
            let message = format!("there is nothing at {} any more", path.display());
            return Err(refuse("disk.target", message));
        }
        let mark = match request.mode {
            DiskMoveMode::Precopy | DiskMoveMode::Mirror | DiskMoveMode::Snapshot => {
                Mark::of_disk_move
            }
            DiskMoveMode::OnDemand => Mark::of_disk_on_demand,
        };
        let mark = mark(job, journal.identity(), &request.path);
        let content = match request.content {
            TargetContent::Blank => Target::Blank,
            TargetContent::Anything => Target::Holds,
        };
        if content == Target::Blank && !mark.is_arriving_on(next.image().file()) {
            let message = format!(
                "{} is not marked as an image that is being made by this job: should the move be cut short, nobody \
                 would know that it holds a part of a disk",
                path.display()
            );
            return Err(refuse("disk.target", message));
        }
        let mode = mode_of(request, (map, overlays), (&before, &next), &mark)?;
        let reserved = journal.reserve(job, Side::Source);
        let record_cost =
            reserved.map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        let moving = DiskMove {
            machine: machine.clone(),
            id: job,
            mark,
            journal,
            record_cost,
            content,
            mode,
            on_not_converging: request.on_not_converging.unwrap_or_default(),
            on_target_error: request.on_target_error.unwrap_or_default(),
            told: watched.told,
            steering: watched.steering,
            writes: watched.writes.unwrap_or_default(),
        };
        moving
            .begin(&request.path)
            .map_err(|e| Observation::from_error(Side::Source, "migration.journal", &e))?;
        Ok((moving, next))
    }

    fn forget_disk_move(&self, job: MigrationId) {
        self.lock().disk_moves.retain(|moving| moving.job != job);
        self.changed.notify_all();
    }

    fn end_disk_move(
        &self,
        job: MigrationId,
        report: DiskMoveReport,
        moved: Result<(), Observation>,
    ) {
        let mut core = self.lock();
        if let Some(at) = core.disk_moves.iter().position(|moving| moving.job == job) {
            let mut moving = core.disk_moves.remove(at);
            let why = moving.given_up.take();
            let moved = moved.map_err(|cancelled| why.unwrap_or(cancelled));
            if let Err(why) = &moved {
                tracing::warn!(disk = %moving.disk, id = why.id, "the disk was not moved: {why}");
            }
            let job = moving.ended(report, moved);
            core.ended_jobs.push(moving.began, job);
        }
        drop(core);
        self.changed.notify_all();
    }

    /// Has no disk move any more, as the guest has ended or is about to: those that have not begun to go over are given
    /// up, which is `why` they fail. Whether that came true in time.
    pub(crate) fn end_disk_moves(&self, why: &Observation, patience: Duration) -> bool {
        for moving in &mut self.lock().disk_moves {
            // One that goes over already is awaited like the others.
            let gives_up = moving.watched.steering.cancel();
            // What is past that, and would wait for its last byte, stops as it is.
            moving.watched.steering.stop();
            if gives_up && moving.given_up.is_none() {
                moving.given_up = Some(why.clone());
            }
        }
        let is_busy = |core: &Core| !core.disk_moves.is_empty() && !core.state.is_final();
        !is_busy(&self.wait_while(patience, is_busy))
    }
}
