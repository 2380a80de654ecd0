//! `vmm disk jobs`.

use control::api::client::Client;
use control::exit::{Exit, local};
use control::job::{Job, JobKind, JobState};
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use migration::observation::Observation;
use migration::progress::LimitChange;

use super::super::event_loop::block_on;
use super::super::job_row::{disk_row, row, show};
use super::super::limits::DiskLimits;
use super::args::DiskJobsArgs;
use super::wrong::usage;

pub(super) fn run(
    args: &DiskJobsArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let DiskJobsArgs {
        name,
        set,
        cancel,
        pause,
        resume,
        job,
    } = args;
    let client = Client::new(runtime, name);
    let of_one = |job: &Job| match job.kind {
        JobKind::DiskMove | JobKind::DiskPull => true,
        JobKind::Migration => false,
    };
    let moves = || {
        let jobs = block_on(client.jobs())?.jobs;
        let moves = jobs.into_iter().filter(of_one);
        Ok::<Vec<Job>, Observation>(moves.collect())
    };
    let with_guest = || {
        let jobs = block_on(client.jobs())?.jobs;
        let moves = jobs
            .into_iter()
            .filter(|job| job.kind == JobKind::Migration);
        Ok::<Vec<Job>, Observation>(moves.collect())
    };
    // Disks move with their guest, too.
    let of_disks = |job: &Job| of_one(job) || !job.disks.is_empty();
    let job = match (set, cancel, pause, resume) {
        (Some(DiskLimits { disk, limits }), ..) => {
            let id = match (job, disk) {
                (Some(_), Some(_)) => {
                    return Err(usage("either --job or a disk says whose limits change"));
                }
                (Some(id), None) => id.clone(),
                (None, disk) => {
                    let mut jobs = moves()?;
                    if disk.is_some() {
                        jobs.extend(with_guest()?);
                    }
                    the_one_that_runs(jobs, disk.as_deref())?
                }
            };
            let limits = LimitChange {
                disk: disk.clone(),
                ..limits.clone()
            };
            block_on(client.set_job_limits(&id, &limits))?
        }
        (_, Some(id), ..) => block_on(client.cancel_job(id))?,
        (_, _, Some(id), _) => block_on(client.pause_job(id))?,
        (.., Some(id)) => block_on(client.resume_job(id))?,
        (None, None, None, None) => {
            for job in block_on(client.jobs())?
                .jobs
                .iter()
                .filter(|job| of_disks(job))
            {
                output.either(job, row(job));
                for disk in &job.disks {
                    output.line(format!("  {}", disk_row(disk)));
                }
            }
            return Ok(Exit::Done);
        }
    };
    show(&job, output);
    Ok(Exit::Done)
}

/// The job that moves a disk: the one of `disk`, where it is named.
fn the_one_that_runs(moves: Vec<Job>, disk: Option<&str>) -> Result<String, Observation> {
    let mut running = moves.into_iter().filter(|job| {
        let moves = |disk: &str| {
            job.disk.as_deref() == Some(disk) || job.disks.iter().any(|of| of.id == disk)
        };
        let is_named = disk.is_none_or(moves);
        is_named && job.state != JobState::Concluded
    });
    match (running.next(), running.next(), disk) {
        (Some(job), None, _) => Ok(job.id),
        (None, _, Some(disk)) => {
            let message =
                format!("disk {disk} of the VM is not being moved, and nothing of it is missing");
            Err(local("job.not-found", message))
        }
        (None, _, None) => Err(local(
            "job.not-found",
            "no disk of the VM is being moved, or lacks anything",
        )),
        (Some(_), Some(_), _) => Err(usage(
            "more than one disk is being moved, or comes: say which, as in --set ID,LIMITS, or with --job",
        )),
    }
}
