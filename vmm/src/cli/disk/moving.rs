//! `vmm disk move`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use block::image::Format;
use control::api::body::{DiskMoveJob, JobRequest};
use control::api::client::{Client, Lines};
use control::disk_move::{
    DiskMoveMode, DiskMoveReport, DiskMoveRequest, ImageFormat, OverlayEnd, TargetContent,
};
use control::exit::{Exit, local};
use control::instance::DiskStatus;
use control::job::{Job, JobOutcome};
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use control::units::{human_bytes, human_ms};
use machine::disk_target::{Wanted, remove_old, taken_by};
use migration::MigrationId;
use migration::journal::FileJournal;
use migration::observation::Observation;

use super::super::event_loop::block_on;
use super::super::followed::Followed;
use super::super::progress::await_interrupt;
use super::args::{After, MoveArgs};
use super::made::{AllPassed, Images, overlays_of};
use super::options::disk_options;
use super::wrong::usage;

/// One disk, and where it goes.
struct Planned {
    disk: DiskStatus,
    path: PathBuf,
    format: ImageFormat,
}

pub(super) fn run(
    args: &MoveArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    args.how().check().map_err(|why| usage(&why))?;
    let (name, id) = named(args)?;
    if args.mode != DiskMoveMode::OnDemand && args.pull.is_some() {
        return Err(usage("--pull is for --mode on-demand"));
    }
    if args.mode == DiskMoveMode::OnDemand && args.existing {
        return Err(usage(
            "--mode on-demand moves a disk to an image that is made for it, not to one that is there",
        ));
    }
    if args.mode != DiskMoveMode::Snapshot && (args.overlay.is_some() || args.keep_chain) {
        let message = "--overlay and --keep-chain are for --mode snapshot";
        return Err(usage(message));
    }
    let client = Client::new(runtime, name);
    let disks = block_on(client.status())?.disks;
    let planned = plan(args, name, id, disks)?;
    let migrations = runtime
        .migrations()
        .ok_or_else(|| local("host.state-dir", "there is no folder for records of moves"))?;
    let journal = FileJournal::open(migrations).map_err(|e| {
        Observation::from_error(
            migration::observation::Side::Client,
            "migration.journal",
            &e,
        )
    })?;
    for one in &planned {
        let mover = Mover {
            args,
            client: &client,
            journal: &journal,
            output,
        };
        let exit = mover.run(one)?;
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    // The VM may have ended since: then nobody is to be told.
    if let Ok(status) = block_on(client.status()) {
        output.line(format!(
            "start {name} the next time with its other options and\n  {}",
            disk_options(&status.disks)
        ));
    }
    Ok(Exit::Done)
}

/// The VM, and the disk where it is one.
fn named(args: &MoveArgs) -> Result<(&str, Option<&str>), Observation> {
    match (args.disk.split_once(':'), args.all) {
        (Some((name, id)), false) => Ok((name, Some(id))),
        (None, true) => Ok((&args.disk, None)),
        (None, false) => Err(usage("which disk? Say NAME:ID, or --all")),
        (Some(_), true) => Err(usage("either one disk or --all")),
    }
}

/// Which disks move, and where to.
fn plan(
    args: &MoveArgs,
    name: &str,
    id: Option<&str>,
    disks: Vec<DiskStatus>,
) -> Result<Vec<Planned>, Observation> {
    let to = std::path::absolute(&args.to)
        .map_err(|e| local("usage.disk", format!("{}: {e}", args.to.display())))?;
    let chosen: Vec<DiskStatus> = disks
        .into_iter()
        .filter(|disk| id.is_none_or(|id| disk.id == id))
        .collect();
    if chosen.is_empty() {
        let message = match id {
            Some(id) => format!("{name} has no disk {id}"),
            None => format!("{name} has no disks"),
        };
        return Err(local("disk.unknown", message));
    }
    let mut planned: Vec<Planned> = Vec::new();
    for disk in chosen {
        if disk.read_only {
            let message = format!(
                "disk {} is only read: move its image, and start the guest anew",
                disk.id
            );
            return Err(local("disk.read-only", message));
        }
        let is_to_device = id.is_some() && is_device(&to);
        let format = match args.format {
            Some(Format::Raw) => ImageFormat::Raw,
            Some(Format::Qcow2) => ImageFormat::Qcow2,
            None if is_to_device => ImageFormat::Raw,
            None => disk.format,
        };
        let path = match id {
            Some(_) => to.clone(),
            None => to.join(new_name(&disk, format)),
        };
        check_devices(args, &disk, is_to_device.then_some(format))?;
        if let Some(other) = planned.iter().find(|other| other.path == path) {
            let message = format!(
                "disks {} and {} would both be at {}: move them one by one",
                other.disk.id,
                disk.id,
                path.display()
            );
            return Err(local("usage.disk", message));
        }
        planned.push(Planned { disk, path, format });
    }
    Ok(planned)
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// What cannot be done with block devices, which can have no marks and are not removed: of a disk that moves to a file, or to a
/// device as an image of the format `to`.
fn check_devices(
    args: &MoveArgs,
    disk: &DiskStatus,
    to: Option<ImageFormat>,
) -> Result<(), Observation> {
    if to == Some(ImageFormat::Qcow2) {
        let message = "a block device takes no image of another format than raw: say --format raw";
        return Err(usage(message));
    }
    if to.is_some() && matches!(args.mode, DiskMoveMode::Snapshot | DiskMoveMode::OnDemand) {
        let message = format!(
            "a disk moves to a block device by --mode precopy or --mode mirror, which keep it whole on one of the two at any \
             moment, and not by {}",
            args.mode
        );
        return Err(usage(&message));
    }
    if args.after == After::Delete && is_device(Path::new(&disk.path)) {
        let message = format!(
            "disk {} is at the block device {}, which is not removed: leave --after delete out",
            disk.id, disk.path
        );
        return Err(usage(&message));
    }
    Ok(())
}

/// The name that the image has, with another ending where it becomes another format.
fn new_name(disk: &DiskStatus, format: ImageFormat) -> PathBuf {
    let name = Path::new(&disk.path).file_name().unwrap_or_default();
    if format == disk.format {
        return name.into();
    }
    Path::new(name).with_extension(match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    })
}

/// What moves disks.
struct Mover<'m> {
    args: &'m MoveArgs,
    client: &'m Client,
    journal: &'m FileJournal,
    output: Output,
}

impl Mover<'_> {
    fn run(&self, planned: &Planned) -> Result<Exit, Observation> {
        let id = MigrationId::random()
            .map_err(|e| local("host.resources", format!("draw an identifier: {e}")))?;
        let overlays = overlays_of(
            self.args,
            (Path::new(&planned.disk.path), planned.disk.format),
            (&planned.path, planned.format),
        );
        let wanted = Wanted {
            path: &planned.path,
            format: match planned.format {
                ImageFormat::Raw => Format::Raw,
                ImageFormat::Qcow2 => Format::Qcow2,
            },
            size: planned.disk.size_bytes,
            needs: taken_by(Path::new(&planned.disk.path))?.min(planned.disk.size_bytes),
            id,
            overlays: overlays.as_ref(),
        };
        let images = Images::make(self.args, &wanted, self.journal)?;
        let (passed, job) = block_on(async {
            let begun = self.pass_and_ask(planned, &images, id).await;
            let passed = images.passed();
            let job = match begun {
                Ok(lines) => self.follow(&id.to_string(), lines).await,
                Err(why) => Err(why),
            };
            Ok((passed, job))
        })?;
        self.conclude(planned, id, &passed, job)
    }

    /// Passes the images, and has the move begin.
    async fn pass_and_ask(
        &self,
        planned: &Planned,
        images: &Images,
        id: MigrationId,
    ) -> Result<Lines<Job>, Observation> {
        let path = planned.path.to_str().ok_or_else(|| {
            usage("the path of the new image is no text (UTF-8), which the VM could not tell")
        })?;
        let end = match self.args.keep_chain {
            true => OverlayEnd::Kept,
            false => OverlayEnd::Consolidated,
        };
        let taken = images.pass(self.client, end).await?;
        let request = DiskMoveRequest {
            id: id.to_string(),
            file: taken.image,
            direct: taken.direct,
            device: taken.device,
            path: path.to_owned(),
            format: planned.format,
            content: if self.args.existing {
                TargetContent::Anything
            } else {
                TargetContent::Blank
            },
            reach: images.reach(),
            mode: self.args.mode,
            on_not_converging: self.args.on_not_converging,
            on_target_error: self.args.on_target_error,
            map: taken.map,
            pull: self.args.pull.unwrap_or_default(),
            overlays: taken.overlays,
            bandwidth: self.args.bandwidth,
            writes: self.args.writes,
            downtime_limit: self.args.downtime_limit,
        };
        let job = JobRequest::DiskMove(DiskMoveJob {
            disk: planned.disk.id.clone(),
            request,
        });
        self.client.begin_and_follow_job(&job).await
    }

    /// Tells how far the job is until it has ended: how it did.
    async fn follow(&self, id: &str, lines: Lines<Job>) -> Result<Job, Observation> {
        let mut interrupts =
            await_interrupt().map_err(|e| local("host.resources", format!("hear signals: {e}")))?;
        let mut followed = Followed::new(self.client, id, lines, self.output);
        loop {
            tokio::select! {
                job = followed.end() => return job,
                () = interrupts.next() => match self.client.cancel_job(id).await {
                    Ok(_) => eprintln!("vmm: cancelling the move; the guest runs on"),
                    Err(why) => eprintln!("vmm: cannot cancel: {why}"),
                },
            }
        }
    }

    /// Does what is left to do, and tells how it went.
    fn conclude(
        &self,
        planned: &Planned,
        id: MigrationId,
        passed: &AllPassed,
        job: Result<Job, Observation>,
    ) -> Result<Exit, Observation> {
        let (disk, path) = (&planned.disk.id, planned.path.display());
        let job = match job {
            Ok(job) => job,
            // The VM has ended, or was killed: what is recorded decides.
            Err(why) if passed.is_the_disk(self.journal) => {
                passed.discard_overlays(self.journal);
                let message = match self.args.mode {
                    DiskMoveMode::Precopy | DiskMoveMode::Mirror | DiskMoveMode::Snapshot => {
                        format!(
                            "disk {disk} has moved to {path}, but how it went cannot be told any more"
                        )
                    }
                    DiskMoveMode::OnDemand => format!(
                        "disk {disk} has gone over to {path}, and the rest of it may still be in {}: vmm disk pull {path} \
                         brings that",
                        planned.disk.path
                    ),
                };
                return Err(local("job.untold", message).caused_by(why));
            }
            Err(why) => {
                passed.discard(self.journal);
                return Err(why);
            }
        };
        let result = job.result.clone();
        let outcome = result.as_ref().map(|result| result.outcome);
        match outcome {
            Some(JobOutcome::Completed) => passed.discard_beside(self.journal),
            _ => passed.discard(self.journal),
        }
        self.output.object(&job);
        let report = result.as_ref().and_then(|result| result.disk_move.clone());
        match outcome {
            Some(JobOutcome::Completed) => {
                self.output
                    .line(completed(disk, &report.unwrap_or_default()));
                if self.args.after == After::Delete {
                    remove_old(Path::new(&planned.disk.path), id, self.journal)?;
                }
                Ok(Exit::Done)
            }
            Some(JobOutcome::Cancelled) => {
                self.output.line(format!(
                    "disk {disk} stays where it was: the move was cancelled"
                ));
                Ok(Exit::Cancelled)
            }
            Some(JobOutcome::Failed | JobOutcome::Unknown) | None => {
                let failed = if passed.is_the_disk(self.journal) {
                    let message = format!("disk {disk} is at {path}, a part of it alone");
                    local("disk.in-part", message)
                } else {
                    let message =
                        format!("disk {disk} was not moved to {path}, and stays where it was");
                    local("disk.not-moved", message)
                };
                Err(match result.and_then(|result| result.error) {
                    Some(why) => failed.caused_by(why),
                    None => failed,
                })
            }
        }
    }
}

fn completed(disk: &str, report: &DiskMoveReport) -> String {
    let DiskMoveReport {
        mode,
        from,
        to,
        size_bytes,
        allocated_bytes,
        copied_bytes,
        class_bytes,
        passes,
        last_bytes,
        io_pause_us,
        retries: _,
        total_ms,
        rounds,
        pauses_us: _,
        forecast_bytes: _,
        overlay_bytes,
        slowed_to: _,
    } = report;
    let bytes = |bytes: &u64| human_bytes(*bytes as f64);
    let meanwhile = match mode {
        DiskMoveMode::Precopy | DiskMoveMode::OnDemand => String::new(),
        DiskMoveMode::Mirror => format!(
            "\n  mirrored  {} that were written meanwhile",
            bytes(&class_bytes.write)
        ),
        DiskMoveMode::Snapshot => format!(
            "\n  overlays  {} at most, brought together in {rounds} rounds",
            bytes(overlay_bytes)
        ),
    };
    format!(
        "disk {disk} is at {to}\n  from      {from}\n  total     {}\n  I/O pause {} for the last {}\n  copied    {} \
         in {passes} passes, of a disk of {} that held {}{meanwhile}",
        human_ms(*total_ms as f64),
        human_ms(*io_pause_us as f64 / 1e3),
        bytes(last_bytes),
        bytes(copied_bytes),
        bytes(size_bytes),
        bytes(allocated_bytes),
    )
}
