//! What the figures of each scenario are to reach. A goal that is missed is reported, never a failure.

use super::figures::{EngineFigures, ScenarioFigures};
use super::goal::{Bound, Goal};
use super::stats::Samples;
use super::unit::Unit;

const MIB: f64 = (1 << 20) as f64;

/// What a scenario's figures of this engine are to reach, as far as they were measured.
pub(super) fn of(figures: &ScenarioFigures) -> Vec<Goal> {
    use Bound::{AtLeast, AtMost};
    use Unit::{Bytes, Milliseconds, Ratio};
    let Some(vmm) = figures.engine() else {
        return Vec::new();
    };
    let prepared = figures.prepared_engine();
    let gap = vmm.guest_gap_ms.as_ref().map(|samples| samples.median);
    let own = |of: fn(&EngineFigures) -> &Samples| vmm.engine.as_ref().map(|own| of(own).median);
    // Name, value, on which side, of what, unit.
    let wanted: &[(&'static str, Option<f64>, Bound, f64, Unit)] = match figures.name {
        "idle" => &[
            (
                "total_to_best_peer",
                vmm.total_to_best_peer,
                AtMost,
                0.9,
                Ratio,
            ),
            (
                "share_of_cold_limit",
                vmm.share_of_cold_limit,
                AtLeast,
                0.85,
                Ratio,
            ),
            // Both at a destination whose memory is there before.
            (
                "reserved_share_of_populated_limit",
                prepared.and_then(|prepared| prepared.share_of_populated_limit),
                AtLeast,
                0.85,
                Ratio,
            ),
            (
                "reserved_total_to_prepared_peer",
                figures.prepared_total_to_prepared_peer,
                AtMost,
                0.9,
                Ratio,
            ),
            ("cpu_to_best_peer", vmm.cpu_to_best_peer, AtMost, 0.7, Ratio),
            ("guest_gap_ms", gap, AtMost, 10.0, Milliseconds),
            ("gap_to_best_peer", vmm.gap_to_best_peer, AtMost, 0.5, Ratio),
        ],
        "dirty" => &[("gap_to_best_peer", vmm.gap_to_best_peer, AtMost, 1.0, Ratio)],
        "slow" => &[
            (
                "total_to_best_peer",
                vmm.total_to_best_peer,
                AtMost,
                1.0,
                Ratio,
            ),
            ("gap_to_best_peer", vmm.gap_to_best_peer, AtMost, 0.8, Ratio),
        ],
        "zero" => &[
            (
                "overhead_wire_bytes",
                own(|own| &own.overhead_wire_bytes),
                AtMost,
                MIB,
                Bytes,
            ),
            (
                "extra_allocated_bytes",
                own(|own| &own.extra_allocated_bytes),
                AtMost,
                MIB / 4.0,
                Bytes,
            ),
        ],
        "cpus" => &[
            (
                "stop_ms",
                own(|own| &own.stop_ms),
                AtMost,
                1.0,
                Milliseconds,
            ),
            (
                "state_save_ms",
                own(|own| &own.state_save_ms),
                AtMost,
                1.0,
                Milliseconds,
            ),
            (
                "state_load_ms",
                own(|own| &own.state_load_ms),
                AtMost,
                1.0,
                Milliseconds,
            ),
        ],
        _ => &[],
    };
    wanted
        .iter()
        .filter_map(|&(figure, value, bound, goal, unit)| {
            Some(Goal::new(figures.name, figure, value?, bound, goal, unit))
        })
        .collect()
}
