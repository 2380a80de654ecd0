//! What one move, or one copy, took.

use super::super::moved::Move;
use super::super::watch::Beside;

/// What one move, or one copy, took. What was not measured is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct DiskTurn {
    /// From the request until the guest and all of its disk are at the destination, or its disk at the new path; of the
    /// plain copy, from its start to its end.
    pub total_ms: f64,
    /// From the request until the guest runs at the destination, where that is before all of its disk is there.
    pub runs_ms: Option<f64>,
    /// Largest gap that the guest saw.
    pub guest_gap_ms: Option<f64>,
    /// Guest stopped to guest running, by this engine's report.
    pub downtime_ms: Option<f64>,
    /// How long requests waited when a disk went over on its host, by this engine's report.
    pub io_pause_ms: Option<f64>,
    /// CPU seconds of both processes without vCPUs.
    pub cpu_s: Option<f64>,
    /// Bytes that went over, disks and memory together.
    pub wire_bytes: Option<f64>,
    /// Those over the bytes of disks and memory that held data.
    pub wire_to_data: Option<f64>,
    /// Bytes of disks that were sent over the bytes of disks that held data.
    pub disk_sent_to_data: Option<f64>,
    /// Bytes of disks that held data a second.
    pub bulk_bytes_per_s: Option<f64>,
    /// What was seen beside.
    pub beside: Beside,
}

impl DiskTurn {
    /// A guest was moved whose memory and disks held so many bytes of data.
    pub fn of_move(moved: &Move, memory_data: u64, disk_data: u64) -> Self {
        let data = (memory_data + disk_data) as f64;
        let wire = match (moved.beside.carried_bytes, moved.engine) {
            (Some(carried), _) => Some(carried as f64),
            // Without a count of the link, of QEMU it is not known what its mirror sent.
            (None, Some(_)) => Some(moved.wire_bytes as f64),
            (None, None) => None,
        };
        let of_disks = |bytes: f64| (disk_data > 0).then(|| bytes / disk_data as f64);
        Self {
            total_ms: moved.total_ms,
            runs_ms: None,
            guest_gap_ms: Some(moved.guest_gap_ms),
            downtime_ms: moved.engine.map(|engine| engine.downtime_ms),
            io_pause_ms: None,
            cpu_s: Some(moved.source_cpu_s + moved.destination_cpu_s),
            wire_bytes: wire,
            wire_to_data: wire.map(|wire| wire / data),
            disk_sent_to_data: moved
                .engine
                .and_then(|engine| of_disks(engine.disk_bytes as f64)),
            bulk_bytes_per_s: rate(disk_data, moved.total_ms),
            beside: moved.beside,
        }
    }
}

/// Bytes a second, where there were any.
pub(super) fn rate(bytes: u64, ms: f64) -> Option<f64> {
    (bytes > 0 && ms > 0.0).then(|| bytes as f64 * 1000.0 / ms)
}
