//! What one timed move of a guest took, whoever moved it.

use super::watch::Beside;

/// One timed move. All contenders are measured by the same definitions (docs/benchmarks.md).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Move {
    /// From the start of the destination process until it waits for a guest.
    pub prepare_ms: f64,
    /// From the request until the source said that it completed and the destination that the guest
    /// runs.
    pub total_ms: f64,
    /// From the request until the first tick of the guest was seen at the destination.
    pub first_tick_ms: f64,
    /// Largest gap that the guest saw between two passes of its loop, from before the request until
    /// the second tick after the first at the destination.
    pub guest_gap_ms: f64,
    /// CPU seconds of the source without its vCPUs, its end included.
    pub source_cpu_s: f64,
    /// CPU seconds of the destination without its vCPUs, until the source has ended.
    pub destination_cpu_s: f64,
    /// Bytes that left the source, by its own report.
    pub wire_bytes: u64,
    /// Pages that the guest dirtied a second, from before the request until its first tick at the
    /// destination.
    pub dirtied_pages_per_s: f64,
    /// What the move did beside moving.
    pub beside: Beside,
    /// What only this engine tells.
    pub engine: Option<EngineParts>,
}

/// Figures of this engine's own report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EngineParts {
    /// Negotiate and prepare.
    pub setup_ms: f64,
    /// Guest stopped to guest running.
    pub downtime_ms: f64,
    /// Stopping the vCPUs and draining the devices.
    pub stop_ms: f64,
    /// Saving the state of the machine.
    pub state_save_ms: f64,
    /// Loading it.
    pub state_load_ms: f64,
    /// `wire_bytes` without the contents of pages that hold data: what all else cost.
    pub overhead_wire_bytes: u64,
    /// How much more guest memory the destination had allocated than the source before.
    pub extra_allocated_bytes: u64,
    /// Bytes of disks that travelled, those that travelled again among them.
    pub disk_bytes: u64,
}
