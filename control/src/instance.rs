//! What the control socket asks of the process that holds a VM.
//!
//! The API knows a VM only by [`Instance`]; the machine implements it.

use std::net::SocketAddr;
use std::time::Duration;

use migration::observation::Observation;
use migration::progress::{Event, LimitChange};
use migration::request::MigrateRequest;
use migration::source_loss::OnSourceLoss;
use migration::steering::Events;
use migration::wire::control::Resolution;
use serde::{Deserialize, Serialize};

use crate::disk_move::{DiskMoveFiles, DiskMoveRequest, ImageFormat};
use crate::job::{Job, JobState, Jobs};
use crate::on_demand::{OnDemandChange, PullPriority};
use crate::passed::PassedFile;

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// `vmm receive` waits for, or takes in, a guest.
    Incoming,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped by request.
    Paused,
    /// Stopped to be handed over; soon the destination runs it, or it goes on here. Of the two hosts of
    /// a migration, never more than one says `running`.
    HandingOver,
    /// Paused because it is not known whether the destination runs the guest, which is asked until it
    /// answers.
    HandoverUnknown,
    /// The guest lives on at another host; this process is about to end.
    Migrated,
    /// The guest powered itself off, was reset with no reboot, or was stopped.
    Stopped,
    /// The guest crashed or KVM could not run it.
    Failed,
}

impl VmState {
    /// Whether the VM has ended.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Migrated | Self::Stopped | Self::Failed)
    }
}

/// How a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The guest powered off by itself.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed, or KVM could not run it: see `error`.
    Crashed,
    /// It was stopped.
    Stopped,
    /// Its process was killed, or its host went down.
    Killed,
    /// The guest lives on at another host.
    Migrated,
    /// No guest came in.
    NotReceived,
    /// The record of the end cannot be read.
    Unknown,
}

/// How and when a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmEnd {
    /// What ended it.
    pub how: Ending,
    /// Who stopped or killed it: `stop`, `stop --force` or a signal, as in `SIGTERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Where it moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// When, in microseconds since 1970; of a VM that was killed, when that was found out.
    pub at_us: u64,
}

impl VmEnd {
    /// An end at this moment.
    pub fn new(how: Ending) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            how,
            by: None,
            to: None,
            at_us: now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

/// Who asks for a guest's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// A client of the control socket.
    Client,
    /// A signal, by its name, as in `SIGTERM`.
    Signal(&'static str),
    /// The process itself, which cannot tell anybody of its VM.
    Holder,
}

impl Requester {
    /// How the end is told that this one asked for.
    pub fn told(self, mode: StopMode) -> String {
        match (self, mode) {
            (Self::Client, StopMode::Graceful) => "stop".into(),
            (Self::Client, StopMode::Force) => "stop --force".into(),
            (Self::Signal(name), _) => name.into(),
            (Self::Holder, _) => "its own process".into(),
        }
    }
}

/// A migration that runs or the last one that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MigrationStatus {
    /// Identifier, 32 hexadecimal digits; absent at a destination until the source has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where the guest is to go, as its user wrote it; absent at a destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The last `phase`, `progress`, `completed`, `failed` or `cancelled` event.
    pub last: Option<Event>,
    /// What the destination answered later to a source that lost the answer to its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
}

/// A disk of a VM, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiskStatus {
    /// Identity of the disk.
    pub id: String,
    /// Path of its image.
    pub path: String,
    /// Format of its image.
    pub format: ImageFormat,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What of it is not here yet; absent where all is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<MissingStatus>,
}

/// What of a disk is not here yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MissingStatus {
    /// Bytes.
    pub bytes: u64,
    /// Where they are served; with a comma between them, if at several places.
    pub from: String,
    /// What of it is served where.
    #[serde(default)]
    pub sources: Vec<MissingFromStatus>,
    /// What requests for them do while whoever serves them is lost.
    #[serde(default, skip_serializing_if = "OnSourceLoss::is_pause")]
    pub on_source_loss: OnSourceLoss,
    /// How those are had that nobody asks for.
    #[serde(default, skip_serializing_if = "PullPriority::is_background")]
    pub priority: PullPriority,
    /// Why they do not come; absent as long as they do, or nobody needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What of a disk is at one of those that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MissingFromStatus {
    /// Where.
    pub from: String,
    /// Bytes; of one that has not said yet what it has, all that may be there.
    pub bytes: u64,
    /// Why it is not reached; absent where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmStatus {
    /// Name of the VM on this host.
    pub name: String,
    /// What it is doing.
    pub state: VmState,
    /// Process id of the VM process.
    pub pid: u32,
    /// Number of vCPUs; 0 while a `receive` does not know yet.
    pub cpus: u32,
    /// Guest RAM in bytes; 0 while a `receive` does not know yet.
    pub memory_bytes: u64,
    /// Its disks, in the order of their slots; none while it has no guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskStatus>,
    /// Milliseconds since the process began.
    pub uptime_ms: u64,
    /// Where `receive` listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The migration that runs or the last one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationStatus>,
    /// Why the state is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Observation>,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<VmEnd>,
    /// Migrations that failed and after which `receive` waits on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_migrations: u32,
    /// Why the last of them failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Observation>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a guest is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// Press the ACPI power button and wait for the guest to power off; a guest without a handler
    /// for it needs `Force`.
    Graceful,
    /// End the VM now.
    Force,
}

/// The VM as its control socket sees it. Calls may block for as long as the operation takes.
///
/// That the VM has ended is told to nobody before everything that it had is free: its name, the port
/// where it listened, its disks. Whoever asks meanwhile waits for that moment. The one that holds the
/// VM hears of the end before, by [`Instance::wait_end`] and [`Instance::own_status`], and says by [`Instance::tell_end`] when it
/// may be told.
pub trait Instance: Send + Sync + 'static {
    /// The truth about the VM now.
    fn status(&self) -> VmStatus;
    /// Stops the vCPUs; a paused VM stays paused.
    fn pause(&self) -> Result<(), Observation>;
    /// Lets a paused VM run; refused in `handover-unknown`.
    fn resume(&self) -> Result<(), Observation>;
    /// Ends the guest; that it has ended may not be told yet when this returns.
    fn stop(&self, mode: StopMode, by: Requester) -> Result<(), Observation>;
    /// Begins a migration on a thread of its own and returns its identifier; `overlays` are the files of those that it names, in
    /// their order.
    fn migrate(
        &self,
        request: MigrateRequest,
        overlays: Vec<Vec<PassedFile>>,
    ) -> Result<String, Observation>;
    /// Events of the migration from its beginning, as far as they are kept; closed after the last one.
    fn migration_events(&self) -> Option<Events>;
    /// Asks the running migration to stop before commit.
    fn cancel_migration(&self) -> Result<(), Observation>;
    /// Changes the limits of the running migration.
    fn set_limits(&self, change: LimitChange) -> Result<(), Observation>;
    /// Its jobs, those that run and the newest of those that ended.
    fn jobs(&self) -> Jobs;
    /// Blocks until job `id` is in another state than `seen`, or `timeout` passes: the job then.
    fn wait_job(&self, id: &str, seen: JobState, timeout: Duration) -> Result<Job, Observation>;
    /// Asks job `id` to stop and undo what it did.
    fn cancel_job(&self, id: &str) -> Result<(), Observation>;
    /// Changes the limits of job `id`.
    fn set_job_limits(&self, id: &str, change: LimitChange) -> Result<(), Observation>;
    /// Has job `id` wait until it is told to go on.
    fn pause_job(&self, id: &str) -> Result<(), Observation>;
    /// Lets job `id` go on.
    fn resume_job(&self, id: &str) -> Result<(), Observation>;
    /// Begins to move disk `id` to the image in `files`, on a thread of its own.
    fn move_disk(
        &self,
        id: &str,
        request: DiskMoveRequest,
        files: DiskMoveFiles,
    ) -> Result<(), Observation>;
    /// Changes how what is missing of disk `id` is had; durable and in force when this returns.
    fn change_on_demand(&self, id: &str, change: OnDemandChange) -> Result<(), Observation>;
    /// Asks the destination whether it ran the guest, and acts on the answer: the new state. `sockets`
    /// are what its name stands for by now; where empty, what it stood for when the guest left.
    fn resolve(&self, sockets: Vec<SocketAddr>) -> Result<VmState, Observation>;
    /// Blocks until the state leaves `seen`, or `timeout` passes; the state then.
    fn wait_change(&self, seen: VmState, timeout: Duration) -> VmState;
    /// Blocks until the VM has ended, there is more to tell than `seen` (another state, or one more
    /// migration that failed and left it waiting), or `timeout` passes: the last status of a VM that has
    /// ended, which nobody else has been told.
    fn wait_end(&self, seen: &VmStatus, timeout: Duration) -> Option<VmStatus>;
    /// As [`Instance::status`], for the one that holds the VM: also of an end that is not told yet.
    fn own_status(&self) -> VmStatus;
    /// Closes where a VM that has ended listened for others, and waits until that is done.
    fn close_door(&self);
    /// Everything that the VM had is free: its end may be told.
    fn tell_end(&self);
}
