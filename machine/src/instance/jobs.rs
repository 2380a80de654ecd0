//! The jobs of a VM: its migrations and the moves of its disks, those that ended before included.

use std::sync::Arc;

use control::instance::VmState;
use control::job::{Job, JobKind, JobOutcome, JobResult, JobState, Jobs};
use migration::observation::Observation;
use migration::progress::LimitChange;

use crate::disks::Disk;
use crate::instance::running_move::RunningMove;
use crate::instance::vm::{Core, Migration, Stage, refuse};

impl Migration {
    /// Asks it to stop before commit.
    pub(super) fn cancel(&self) -> Result<(), Observation> {
        if self.steering.cancel() {
            return Ok(());
        }
        Err(refuse(
            "migration.committing",
            "it is too late: the commit is on its way, or the migration is ending",
        ))
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// `usage.limits` where they name a disk that does not go with the guest, or are none of a disk's.
    pub(super) fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        self.steering.change_limits(change)
    }
}

impl Core {
    /// Makes `migration` the one that is told of; the one before it has ended.
    pub(super) fn begin_migration(&mut self, migration: Migration) {
        let began = self.count_job();
        let before_began = std::mem::replace(&mut self.migration_began, began);
        if let Some(mut before) = self.migration.replace(migration) {
            before.stage = Stage::Ended;
            if let Some(job) = self.job_of(&before) {
                self.ended_jobs.push(before_began, job);
            }
        }
    }

    /// The number of a job that begins, among all that began.
    pub(super) fn count_job(&mut self) -> u64 {
        self.begun_jobs += 1;
        self.begun_jobs
    }

    /// Its jobs, the oldest first.
    pub(super) fn jobs(&self) -> Jobs {
        let newest = self.migration.as_ref().and_then(|m| self.job_of(m));
        let newest = newest.map(|job| (self.migration_began, job));
        let moves = self.disk_moves.iter().map(|job| (job.began, job.told()));
        let ended = self.ended_jobs.iter().cloned();
        // They began with the guest that they came with.
        let pulls = self.pulls().map(|job| (self.migration_began, job));
        let mut jobs: Vec<_> = ended.chain(newest).chain(moves).chain(pulls).collect();
        jobs.sort_by_key(|(began, _)| *began);
        Jobs {
            jobs: jobs.into_iter().map(|(_, job)| job).collect(),
        }
    }

    /// A migration as a job; one that waits for a guest of which nothing was told is none yet.
    fn job_of(&self, migration: &Migration) -> Option<Job> {
        let Migration {
            id,
            to,
            steering,
            stage,
            resolution,
            broken,
        } = migration;
        let id = id.or_else(|| steering.id())?;
        let mut job = Job::of_migration(id.to_string(), &steering.past());
        job.disks = steering.disk_bytes();
        if let Some(why) = broken {
            job.state = JobState::Concluded;
            job.result = Some(JobResult::without_report(JobOutcome::Failed, why.clone()));
        }
        if let Some(to) = to {
            job.to = Some(to.to_string());
            job.limits = Some(steering.limits().into());
        }
        match (stage, job.state) {
            // What it says about the guest is being made true.
            (Stage::Active, JobState::Concluded) => {
                job.state = JobState::Finishing;
                job.result = None;
            }
            (Stage::Active, JobState::Running) if steering.is_stopped() => {
                job.state = JobState::Cancelling;
            }
            (Stage::Resolving | Stage::Ended, JobState::Concluded)
                if self.state == VmState::HandoverUnknown =>
            {
                job.state = JobState::Resolving;
                if let Some(result) = &mut job.result {
                    result.outcome = JobOutcome::Unknown;
                }
            }
            (_, _) => {}
        }
        if let (Some(result), Some(answer)) = (&mut job.result, resolution) {
            result.resolve(*answer);
        }
        Some(job)
    }

    /// Job `id`, as long as it may be steered.
    ///
    /// # Errors
    /// `job.not-found`, `job.concluded`, and `migration.committing` for one whose end only the other host knows.
    pub(super) fn steered(&self, id: &str) -> Result<Steered<'_>, Observation> {
        let job = self.jobs().find(id)?;
        let moving = self.disk_moves.iter().find(|it| it.job.to_string() == id);
        match (job.state, moving, &self.migration) {
            (JobState::Concluded, ..) => {
                Err(refuse("job.concluded", format!("the job {id} is over")))
            }
            (_, Some(moving), _) => Ok(Steered::DiskMove(moving)),
            _ if job.kind == JobKind::DiskPull => match self.pulled_by(id) {
                Some(disk) => Ok(Steered::DiskPull(disk)),
                None => Err(refuse("job.concluded", format!("the job {id} is over"))),
            },
            (JobState::Resolving, ..) => Err(refuse(
                "migration.committing",
                "it is too late: only the destination knows whether the guest runs there",
            )),
            (_, None, Some(migration)) => Ok(Steered::Migration(migration)),
            (_, None, None) => Err(refuse("job.concluded", format!("the job {id} is over"))),
        }
    }
}

/// A job that may be steered.
pub(super) enum Steered<'c> {
    Migration(&'c Migration),
    DiskMove(&'c RunningMove),
    DiskPull(Arc<Disk>),
}

impl Steered<'_> {
    pub(super) fn cancel(&self) -> Result<(), Observation> {
        match self {
            Self::Migration(migration) => migration.cancel(),
            Self::DiskMove(moving) => moving.cancel(),
            Self::DiskPull(disk) => Err(refuse(
                "job.no-cancel",
                format!(
                    "what disk {} lacks is a part of it: its coming can be paused, and not cancelled",
                    disk.id
                ),
            )),
        }
    }

    pub(super) fn pause(&self) -> Result<(), Observation> {
        match self {
            Self::DiskMove(moving) => moving.pause(),
            Self::DiskPull(disk) => {
                disk.coming.iter().for_each(|coming| coming.pause());
                Ok(())
            }
            Self::Migration(_) => Err(no_pause()),
        }
    }

    pub(super) fn resume(&self) -> Result<(), Observation> {
        match self {
            Self::DiskMove(moving) => moving.resume(),
            Self::DiskPull(disk) => {
                disk.coming.iter().for_each(|coming| coming.resume());
                Ok(())
            }
            Self::Migration(_) => Err(no_pause()),
        }
    }

    pub(super) fn set_limits(&self, change: LimitChange) -> Result<(), Observation> {
        match self {
            Self::Migration(migration) if migration.to.is_none() => Err(refuse(
                "job.no-limits",
                "the guest comes in: its limits are those of the job at the host that it leaves",
            )),
            Self::Migration(migration) => migration.set_limits(change),
            Self::DiskMove(moving) => moving.set_limits(change),
            Self::DiskPull(_) if change.downtime_limit.is_some() || change.writes.is_some() => {
                Err(refuse(
                    "job.no-limits",
                    "a disk that comes while its guest runs has no downtime, and its guest writes as it likes: bandwidth= limits it",
                ))
            }
            Self::DiskPull(disk) => {
                let coming = disk.coming.iter();
                let rate = change.bandwidth;
                coming.for_each(|coming| rate.into_iter().for_each(|it| coming.set_bandwidth(it)));
                Ok(())
            }
        }
    }
}

fn no_pause() -> Observation {
    refuse(
        "job.no-pause",
        "a migration cannot be paused: its bandwidth can be limited",
    )
}

#[cfg(test)]
mod tests {
    use control::job::JobOutcome::{Completed, Failed, Unknown};
    use control::job::JobState::{Cancelling, Concluded, Resolving, Running};
    use control::runtime_dir::RuntimeDir;
    use migration::MigrationId;
    use migration::steering::Steering;
    use migration::wire::control::Resolution;

    use super::*;
    use crate::instance::vm::VmInstance;

    #[test]
    fn what_is_told_of_a_job_and_who_may_steer_it_follow_the_vm() {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        let dir = runtime.create(Some("a"), "vm").unwrap();
        let instance = VmInstance::new(&dir, VmState::Running);
        let steering = Steering::new();
        instance.lock().begin_migration(Migration {
            id: Some(MigrationId([7; 16])),
            to: None,
            steering: steering.clone(),
            stage: Stage::Active,
            resolution: None,
            broken: None,
        });
        let id = "07".repeat(16);
        let told = |change: fn(&mut Core, &mut Migration)| {
            let mut core = instance.lock();
            let mut migration = core.migration.take().unwrap();
            change(&mut core, &mut migration);
            core.migration = Some(migration);
            let job = core.jobs().find(&id).unwrap();
            let steered = core.steered(&id).map(|_| ()).map_err(|why| why.id);
            (job.state, job.result.map(|result| result.outcome), steered)
        };
        assert_eq!(told(|_, _| {}), (Running, None, Ok(())));
        assert!(steering.cancel());
        assert_eq!(told(|_, _| {}), (Cancelling, None, Ok(())));
        // Its engine breaks while the guest may be gone.
        let in_doubt = told(|core, migration| {
            core.state = VmState::HandoverUnknown;
            migration.stage = Stage::Ended;
            migration.broken = Some(refuse("migration.worker", "broken"));
        });
        let too_late = Err("migration.committing".to_owned());
        assert_eq!(in_doubt, (Resolving, Some(Unknown), too_late.clone()));
        let asking = told(|_, migration| migration.stage = Stage::Resolving);
        assert_eq!(asking, (Resolving, Some(Unknown), too_late));
        let over = Err("job.concluded".to_owned());
        let kept = told(|core, migration| {
            core.state = VmState::Running;
            migration.stage = Stage::Ended;
            migration.resolution = Some(Resolution::NeverRan);
        });
        assert_eq!(kept, (Concluded, Some(Failed), over.clone()));
        let gone = told(|core, migration| {
            core.state = VmState::Migrated;
            migration.resolution = Some(Resolution::Ran);
        });
        assert_eq!(gone, (Concluded, Some(Completed), over));
        let unknown = instance.lock().steered("8").map(|_| ()).unwrap_err();
        assert_eq!(unknown.id, "job.not-found");
    }

    #[test]
    fn the_job_before_the_newest_is_still_told_of() {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        let dir = runtime.create(Some("a"), "vm").unwrap();
        let instance = VmInstance::new(&dir, VmState::Running);
        let mut core = instance.lock();
        for n in [Some(1), Some(2), None, Some(3)] {
            core.begin_migration(Migration {
                id: n.map(|n| MigrationId([n; 16])),
                to: None,
                steering: Steering::new(),
                stage: Stage::Active,
                resolution: None,
                broken: n.map(|_| refuse("migration.worker", "broken")),
            });
        }
        // One of which nothing was told is no job.
        let ids: Vec<_> = core.jobs().jobs.into_iter().map(|job| job.id).collect();
        assert_eq!(ids, [1, 2, 3].map(|n| MigrationId([n; 16]).to_string()));
    }
}
