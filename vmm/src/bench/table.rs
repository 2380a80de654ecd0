//! The report for people: aligned columns with units.

use std::fmt::Write;

use serde::Serialize;

use super::goals::{Bound, Goal};
use super::stats::Samples;
use crate::units::{human_bytes, human_ms};

const COLUMN: usize = 11;

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
    fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => human_ms(value),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => human_bytes(value),
            Self::Ratio => format!("{value:.2}"),
        }
    }
}

/// One figure.
pub(super) struct Row {
    label: &'static str,
    median: String,
    spread: Option<(String, String)>,
}

impl Row {
    /// A figure of several runs.
    pub fn samples(label: &'static str, samples: &Samples, unit: Unit) -> Self {
        let spread = Some((unit.show(samples.min), unit.show(samples.max)));
        Self {
            label,
            median: unit.show(samples.median),
            spread,
        }
    }

    /// A figure that is made of others.
    pub fn single(label: &'static str, value: f64, unit: Unit) -> Self {
        Self {
            label,
            median: unit.show(value),
            spread: None,
        }
    }
}

/// A section: its title above the columns, then its figures.
pub(super) fn section(title: &str, rows: &[Row]) -> String {
    let labels = rows.iter().map(|row| row.label.len() + 2);
    let width = labels.max().unwrap_or(0);
    let mut text = format!("{title}\n");
    line(&mut text, width, "", "median", Some(("min", "max")));
    for row in rows {
        let spread = row
            .spread
            .as_ref()
            .map(|(min, max)| (min.as_str(), max.as_str()));
        line(&mut text, width, row.label, &row.median, spread);
    }
    text
}

fn line(text: &mut String, width: usize, label: &str, median: &str, spread: Option<(&str, &str)>) {
    let mut line = format!("{:<width$}{median:>COLUMN$}", format!("  {label}"));
    if let Some((min, max)) = spread {
        let _ = write!(line, "{min:>COLUMN$}{max:>COLUMN$}");
    }
    text.push_str(&line);
    text.push('\n');
}

/// The goals, one a line, and whether each is reached.
pub(super) fn goals(goals: &[Goal]) -> String {
    let width = goals
        .iter()
        .map(|goal| goal.figure.len() + 2)
        .max()
        .unwrap_or(0);
    let mut text = "goals\n".to_owned();
    for goal in goals {
        let bound = match goal.bound {
            Bound::AtLeast => "at least",
            Bound::AtMost => "at most",
        };
        let wanted = format!("{bound} {}", goal.unit.show(goal.goal));
        let outcome = if goal.reached { "reached" } else { "missed" };
        let label = format!("  {}", goal.figure);
        let value = goal.unit.show(goal.value);
        let _ = writeln!(
            text,
            "{label:<width$}{value:>COLUMN$}   {wanted:<18} {outcome}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let samples = Samples::new(vec![900.0, 1250.0, 950.0]).unwrap();
        let rows = [
            Row::samples("total", &samples, Unit::Milliseconds),
            Row::samples("on the wire", &samples, Unit::Bytes),
            Row::single("share of the limit", 0.75, Unit::Ratio),
        ];
        assert_eq!(
            section("idle", &rows),
            "idle\n\
             \x20                        median        min        max\n\
             \x20 total                  950 ms     900 ms     1.25 s\n\
             \x20 on the wire             950 B      900 B   1.22 KiB\n\
             \x20 share of the limit       0.75\n"
        );
    }

    #[test]
    fn goals_say_whether_they_are_reached() {
        let list = [
            Goal::new("share_of_limit", 0.75, Bound::AtLeast, 0.6, Unit::Ratio),
            Goal::new(
                "guest_gap_ms",
                25.0,
                Bound::AtMost,
                20.0,
                Unit::Milliseconds,
            ),
        ];
        assert_eq!(
            goals(&list),
            "goals\n\
             \x20 share_of_limit       0.75   at least 0.60      reached\n\
             \x20 guest_gap_ms        25 ms   at most 20 ms      missed\n"
        );
    }
}
