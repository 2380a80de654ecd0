//! What the control socket asks of the process that holds a VM.
//!
//! The API knows a VM only by [`Instance`]; the machine implements it.

use std::time::Duration;

use migration::observation::Observation;
use migration::progress::{Event, Limits, TimeoutAction, Verify};
use serde::{Deserialize, Serialize};

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
    /// Paused because it is not known whether the destination runs the guest; needs `--resolve`.
    HandoverUnknown,
    /// The guest lives on at another host; this process is about to end.
    Migrated,
    /// The guest powered itself off, was reset with no reboot, or was stopped.
    Stopped,
    /// The guest crashed or KVM could not run it.
    Failed,
}

/// A migration that runs or the last one that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MigrationStatus {
    /// Identifier, 32 hexadecimal digits; absent at a destination until the source has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The last `phase`, `progress`, `completed`, `failed` or `cancelled` event.
    pub last: Option<Event>,
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
}

/// What `vmm migrate` asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// `HOST:PORT` or `unix:PATH`.
    pub to: String,
    /// Limits, changeable later.
    pub limits: Limits,
    /// Data connections, 1 to 16; `None` lets the engine choose.
    pub streams: Option<u8>,
    /// Total time before `on_timeout` is done.
    pub timeout: Option<Duration>,
    /// What to do then.
    pub on_timeout: TimeoutAction,
    /// `stream`, `full` or `off`.
    pub verify: Verify,
    /// Allows plain TCP beyond loopback.
    pub insecure: bool,
    /// Only negotiate: say whether it would work, and change nothing.
    pub plan: bool,
}

/// New limits for a migration that runs; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// New downtime budget.
    pub downtime: Option<Duration>,
    /// New bandwidth in bytes per second; 0 is unlimited.
    pub bandwidth: Option<u64>,
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
pub trait Instance: Send + Sync + 'static {
    /// The truth about the VM now.
    fn status(&self) -> VmStatus;
    /// Stops the vCPUs; a paused VM stays paused.
    fn pause(&self) -> Result<(), Observation>;
    /// Lets a paused VM run; refused in `handover-unknown`.
    fn resume(&self) -> Result<(), Observation>;
    /// Ends the guest.
    fn stop(&self, mode: StopMode) -> Result<(), Observation>;
    /// Begins a migration on a thread of its own and returns its identifier.
    fn migrate(&self, request: MigrateRequest) -> Result<String, Observation>;
    /// Events of the migration from its beginning; the receiver is closed after the last one.
    fn migration_events(&self) -> Option<std::sync::mpsc::Receiver<Event>>;
    /// Asks the running migration to stop before commit.
    fn cancel_migration(&self) -> Result<(), Observation>;
    /// Changes the limits of the running migration.
    fn set_limits(&self, change: LimitChange) -> Result<(), Observation>;
    /// Asks the destination whether it ran the guest, and acts on the answer: the new state.
    fn resolve(&self) -> Result<VmState, Observation>;
    /// Blocks until the state leaves `seen`, or `timeout` passes; the state then.
    fn wait_change(&self, seen: VmState, timeout: Duration) -> VmState;
}
