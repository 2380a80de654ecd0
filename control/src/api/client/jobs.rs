//! What is asked about jobs, of any kind.

use hyper::Method;
use migration::observation::{Observation, Side};
use migration::progress::LimitChange;

use super::connection::{Client, json};
use super::lines::Lines;
use crate::api::body::JobRequest;
use crate::disk_move::DiskMoveRequest;
use crate::instance::VmStatus;
use crate::job::{Job, Jobs};
use crate::on_demand::OnDemandChange;

/// Where a job is; what can be no identifier names none.
fn job_path(id: &str, what: &str) -> Result<String, Observation> {
    let is_id = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || !id.chars().all(is_id) {
        return Jobs::default().find(id).map(|job| job.id);
    }
    Ok(format!("/vm/jobs/{id}{what}"))
}

impl Client {
    /// `GET /vm/jobs`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn jobs(&self) -> Result<Jobs, Observation> {
        self.call(Method::GET, "/vm/jobs", None::<&()>).await
    }

    /// `GET /vm/jobs/ID`
    ///
    /// # Errors
    /// `job.not-found`, and as for [`Client::status`].
    pub async fn job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "")?;
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// `POST /vm/jobs`
    ///
    /// # Errors
    /// What the VM observed, and as for [`Client::status`].
    pub async fn begin_job(&self, request: &JobRequest) -> Result<Job, Observation> {
        self.call(Method::POST, "/vm/jobs", Some(request)).await
    }

    /// `POST /vm/jobs`, answered by the job as it changes until it is over.
    ///
    /// # Errors
    /// As for [`Client::begin_job`].
    pub async fn begin_and_follow_job(
        &self,
        request: &JobRequest,
    ) -> Result<Lines<Job>, Observation> {
        self.lines(Method::POST, "/vm/jobs", json(request)?).await
    }

    /// `GET /vm/jobs/ID/events`: the job as it is and as it changes, until it is over.
    ///
    /// # Errors
    /// `job.not-found`, and as for [`Client::status`].
    pub async fn follow_job(&self, id: &str) -> Result<Lines<Job>, Observation> {
        let path = job_path(id, "/events")?;
        self.lines(Method::GET, &path, Vec::new()).await
    }

    /// `POST /vm/jobs/ID/cancel`
    ///
    /// # Errors
    /// `job.not-found`, `job.concluded`, `migration.committing`, and as for [`Client::status`].
    pub async fn cancel_job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "/cancel")?;
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// `POST /vm/jobs/ID/pause`
    ///
    /// # Errors
    /// As for [`Client::cancel_job`], and `job.no-pause`.
    pub async fn pause_job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "/pause")?;
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// `POST /vm/jobs/ID/resume`
    ///
    /// # Errors
    /// As for [`Client::pause_job`].
    pub async fn resume_job(&self, id: &str) -> Result<Job, Observation> {
        let path = job_path(id, "/resume")?;
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// `PATCH /vm/jobs/ID/limits`
    ///
    /// # Errors
    /// As for [`Client::cancel_job`], and `job.no-limits`.
    pub async fn set_job_limits(&self, id: &str, limits: &LimitChange) -> Result<Job, Observation> {
        let path = job_path(id, "/limits")?;
        self.call(Method::PATCH, &path, Some(limits)).await
    }

    /// `POST /vm/disks/ID/move`
    ///
    /// # Errors
    /// What the VM observed, and as for [`Client::status`].
    pub async fn move_disk(&self, id: &str, request: &DiskMoveRequest) -> Result<Job, Observation> {
        let path = disk_path(id, "move")?;
        self.call(Method::POST, &path, Some(request)).await
    }

    /// `PATCH /vm/disks/ID/on-demand`
    ///
    /// # Errors
    /// What the VM observed, and as for [`Client::status`].
    pub async fn change_on_demand(
        &self,
        id: &str,
        change: &OnDemandChange,
    ) -> Result<VmStatus, Observation> {
        let path = disk_path(id, "on-demand")?;
        self.call(Method::PATCH, &path, Some(change)).await
    }
}

/// Path of what is asked of disk `id`.
fn disk_path(id: &str, what: &str) -> Result<String, Observation> {
    // It is a part of a path.
    let is_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || !id.chars().all(is_id) {
        let message = format!("{id:?} is no identity of a disk");
        return Err(Observation::new(Side::Client, "disk.unknown", message));
    }
    Ok(format!("/vm/disks/{id}/{what}"))
}
