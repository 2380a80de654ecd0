//! In what terms the engine and a VM speak of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observation::Observation;

/// Result of an operation that the VM does for the engine.
pub type VmResult<T> = Result<T, Observation>;

/// A stretch of guest-physical memory backed by RAM; both ends page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRegion {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What a destination must be able to build; the first thing that it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDescription {
    /// Name of the VM at the source.
    pub name: String,
    /// RAM layout, ascending by address.
    pub ram: Vec<RamRegion>,
    /// The machine as its VMM describes it to itself (JSON: CPUs, CPUID, devices, disks); opaque here.
    pub machine: String,
    /// Where its disks lie, by which a destination tells whether it has the same; as opaque here. Absent
    /// where there are none, and from a source of version 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<String>,
}

/// How memory gets huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// By its first touch, where the mapping was advised to have them (`MADV_HUGEPAGE`).
    ByAdvice,
    /// By being put together of small ones (`MADV_COLLAPSE`), whatever the host's policy is; that
    /// costs half as much again.
    #[default]
    ByCollapse,
}

/// Whether the guest runs when nobody migrates it; it stays that way through a migration.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// vCPUs run.
    #[default]
    Running,
    /// Its user paused it.
    Paused,
}

/// What parts of a switch-over take, as they were measured beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rehearsal {
    /// Stopping the vCPUs.
    pub stop: Duration,
    /// Saving the state of the machine.
    pub save: Duration,
}
