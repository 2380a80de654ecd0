//! The report for people: aligned columns with units.

use serde::Serialize;

use super::contender::Role;
use super::figures::{ContenderFigures, EngineFigures, ScenarioFigures};
use super::goals::{Bound, Goal};
use super::stats::Samples;
use crate::units::{ByteSize, human_bytes, human_ms};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share of something else.
    Ratio,
}

impl Unit {
    /// A value with its unit.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => human_ms(value),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => human_bytes(value),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

/// Rows of cells, the first row being the heads of the columns.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these heads.
    pub fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// Aligned columns: the first to the left, the others to the right.
    pub fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.0 {
            let mut line = String::from("  ");
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if index == 0 {
                    line += &format!("{cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    /// The same as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.0.iter().enumerate() {
            text += &format!("| {} |\n", row.join(" | "));
            if index == 0 {
                text += &format!("|---|{}\n", "---:|".repeat(row.len().saturating_sub(1)));
            }
        }
        text
    }
}

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

/// One figure a row, with its spread.
pub(super) fn samples(rows: &[(&str, &Samples, Unit)]) -> Table {
    let mut table = Table::new(&["", "median", "min", "max"]);
    for (label, samples, unit) in rows {
        let values = [samples.median, samples.min, samples.max];
        let mut cells = vec![(*label).to_owned()];
        cells.extend(values.map(|value| unit.show(value)));
        table.row(cells);
    }
    table
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
    fn columns_are_aligned() {
        let values = Samples::new(vec![900.0, 1250.0, 950.0]).unwrap();
        let rows = [
            ("total", &values, Unit::Milliseconds),
            ("on the wire", &values, Unit::Bytes),
        ];
        let table = samples(&rows);
        assert_eq!(
            table.text(),
            "               median     min       max\n\
             \x20 total        950 ms  900 ms    1.25 s\n\
             \x20 on the wire   950 B   900 B  1.22 KiB\n"
        );
        assert_eq!(
            table.markdown(),
            "|  | median | min | max |\n\
             |---|---:|---:|---:|\n\
             | total | 950 ms | 900 ms | 1.25 s |\n\
             | on the wire | 950 B | 900 B | 1.22 KiB |\n"
        );
    }

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
