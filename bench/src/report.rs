//! The report for people: a table for each group of figures.

use control::units::ByteSize;

use super::figures::{ContenderFigures, EngineFigures, ScenarioFigures};
use super::goal::{Bound, Goal};
use super::role::Role;
use super::stats::Samples;
use super::table::{Table, samples};
use super::unit::Unit;

/// The contenders of a scenario and how they compare.
pub(super) fn contenders(figures: &ScenarioFigures) -> Table {
    let dirtied = figures.guest.dirty_bytes > 0;
    let mut heads = vec![
        "",
        "total",
        "min",
        "max",
        "first tick",
        "gap",
        "worst gap",
        "CPU",
        "wire",
    ];
    if dirtied {
        heads.push("dirtied/s");
    }
    heads.extend(["to best QEMU", "of cold limit", "of populated"]);
    let mut table = Table::new(&heads);
    for contender in &figures.contenders {
        let mut cells = vec![contender.name.clone()];
        let Some(total) = &contender.total_ms else {
            cells.push("left out".to_owned());
            table.row(cells);
            continue;
        };
        let ms = |value: f64| Unit::Milliseconds.show(value);
        cells.extend([ms(total.median), ms(total.min), ms(total.max)]);
        cells.push(median(&contender.first_tick_ms, Unit::Milliseconds));
        cells.push(median(&contender.guest_gap_ms, Unit::Milliseconds));
        cells.push(
            contender
                .guest_gap_ms
                .as_ref()
                .map_or_else(none, |gap| ms(gap.max)),
        );
        cells.push(median(&contender.cpu_s, Unit::Seconds));
        cells.push(median(&contender.wire_bytes, Unit::Bytes));
        if dirtied {
            let rate = contender.dirtied_pages_per_s.as_ref();
            cells.push(rate.map_or_else(none, |rate| format!("{:.0}", rate.median)));
        }
        cells.push(best_marked(contender, figures));
        for share in [
            contender.share_of_cold_limit,
            contender.share_of_populated_limit,
        ] {
            cells.push(share.map_or_else(none, |share| Unit::Ratio.show(share)));
        }
        table.row(cells);
    }
    table
}

/// The ratio to the best QEMU.
fn best_marked(contender: &ContenderFigures, figures: &ScenarioFigures) -> String {
    let ratio = contender.total_to_best_peer;
    match ratio.map(|ratio| Unit::Ratio.show(ratio)) {
        Some(_) if figures.best_peer.as_deref() == Some(&contender.name) => "best".to_owned(),
        Some(ratio) if matches!(contender.role, Role::PreparedPeer | Role::PreparedEngine) => {
            format!("({ratio})")
        }
        Some(ratio) => ratio,
        None => none(),
    }
}

fn median(samples: &Option<Samples>, unit: Unit) -> String {
    samples
        .as_ref()
        .map_or_else(none, |samples| unit.show(samples.median))
}

fn none() -> String {
    "-".to_owned()
}

/// What the scenario is, in a line.
pub(super) fn title(figures: &ScenarioFigures, runs: u32) -> String {
    let guest = &figures.guest;
    let mut text = format!(
        "{}: {}: {} of {} random",
        figures.name,
        figures.what,
        ByteSize(guest.random_bytes),
        ByteSize(guest.memory_bytes)
    );
    if guest.dirty_bytes > 0 {
        text += &format!(
            ", {} dirtied at {} pages/s",
            ByteSize(guest.dirty_bytes),
            guest.dirty_pages_per_s
        );
    }
    text + &format!(
        ", {}, downtime limit {} ms, {runs} runs",
        figures.link, figures.downtime_limit_ms
    )
}

/// What this engine reports of itself.
pub(super) fn engine(figures: &EngineFigures) -> Table {
    let EngineFigures {
        setup_ms,
        downtime_ms,
        stop_ms,
        state_save_ms,
        state_load_ms,
        overhead_wire_bytes,
        extra_allocated_bytes,
    } = figures;
    samples(&[
        ("set-up", setup_ms, Unit::Milliseconds),
        ("downtime", downtime_ms, Unit::Milliseconds),
        ("  stop of all vCPUs", stop_ms, Unit::Milliseconds),
        ("  state save", state_save_ms, Unit::Milliseconds),
        ("  state load", state_load_ms, Unit::Milliseconds),
        (
            "wire beside page contents",
            overhead_wire_bytes,
            Unit::Bytes,
        ),
        (
            "allocated beyond the source",
            extra_allocated_bytes,
            Unit::Bytes,
        ),
    ])
}

/// The goals and whether each is reached.
pub(super) fn goals(goals: &[Goal]) -> Table {
    let mut table = Table::new(&["", "measured", "goal", ""]);
    for goal in goals {
        let bound = match goal.bound {
            Bound::AtLeast => "at least",
            Bound::AtMost => "at most",
        };
        table.row(vec![
            format!("{} {}", goal.scenario, goal.figure),
            goal.unit.show(goal.value),
            format!("{bound} {}", goal.unit.show(goal.goal)),
            if goal.reached { "reached" } else { "missed" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_say_whether_they_are_reached() {
        let list = [
            Goal::new("idle", "share", 0.75, Bound::AtLeast, 0.6, Unit::Ratio),
            Goal::new(
                "idle",
                "gap_ms",
                25.0,
                Bound::AtMost,
                20.0,
                Unit::Milliseconds,
            ),
        ];
        assert_eq!(
            goals(&list).text(),
            "               measured           goal\n\
             \x20 idle share       0.75  at least 0.60  reached\n\
             \x20 idle gap_ms     25 ms  at most 20 ms   missed\n"
        );
    }
}
