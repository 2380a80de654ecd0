//! All figures of a benchmark, for programs and for people.

use serde::Serialize;

use super::goals::Goal;
use super::host::HostDescription;
use super::idle::IdleFigures;
use super::start::{STARTS, StartFigures};
use super::table;
use super::zero::ZeroFigures;
use super::{BenchOptions, Scenario};
use crate::units::{ByteSize, human_bytes};

/// All figures of a benchmark. Field names are a stable contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Version of the program that was measured.
    pub version: &'static str,
    /// `release` or `debug`; figures of a debug build say little.
    pub build: &'static str,
    /// The machine.
    pub host: HostDescription,
    /// Runs of each measurement.
    pub runs: u32,
    /// The idle guest, unless it was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleFigures>,
    /// The mostly untouched guest, unless it was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero: Option<ZeroFigures>,
    /// Starting a guest, unless it was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartFigures>,
    /// Goals of what was measured.
    pub goals: Vec<Goal>,
}

impl Summary {
    /// A summary with nothing measured yet.
    pub(super) fn new(options: &BenchOptions) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            host: HostDescription::of_this_machine(),
            runs: options.runs,
            idle: None,
            zero: None,
            start: None,
            goals: Vec::new(),
        }
    }

    /// What stands above the tables.
    pub(super) fn heading(&self) -> String {
        let Self {
            version,
            build,
            host,
            ..
        } = self;
        let note = if *build == "debug" {
            "; build with --release for figures that count"
        } else {
            ""
        };
        format!(
            "vmm {version} ({build} build{note})\n{}, {} CPUs, {} of memory, Linux {}, {}, huge pages \
             in shared memory: {}\n",
            host.cpu_model,
            host.cpus,
            human_bytes(host.memory_bytes as f64),
            host.kernel,
            host.kvm_backend,
            host.shmem_huge_pages,
        )
    }

    /// The table of one measurement; empty when there is none.
    pub(super) fn section(&self, scenario: Scenario) -> String {
        let Self { runs, .. } = self;
        let (title, rows) = match scenario {
            Scenario::Idle => self.idle.as_ref().map(|figures| {
                let title = format!(
                    "idle: a spinning guest with {} of random memory over TCP on loopback, {} \
                     streams, {runs} runs",
                    ByteSize(figures.random_bytes),
                    figures.streams
                );
                (title, figures.rows())
            }),
            Scenario::Zero => self.zero.as_ref().map(|figures| {
                let title = format!(
                    "zero: a guest of {} that filled {}, {} streams, {runs} runs",
                    ByteSize(figures.guest_bytes),
                    ByteSize(figures.filled_bytes),
                    figures.streams
                );
                (title, figures.rows())
            }),
            Scenario::Start => self.start.as_ref().map(|figures| {
                (
                    format!("start: `vmm run` to the guest's first line, {STARTS} starts"),
                    figures.rows(),
                )
            }),
        }
        .unwrap_or_default();
        if rows.is_empty() {
            String::new()
        } else {
            table::section(&title, &rows)
        }
    }

    /// The goals and whether they are reached.
    pub(super) fn goals_table(&self) -> String {
        table::goals(&self.goals)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Samples;
    use super::*;

    fn measured() -> Summary {
        let mut summary = Summary::new(&BenchOptions::default());
        let figures = StartFigures {
            first_line_ms: Samples::new(vec![41.0, 40.0, 44.0]).unwrap(),
            vmm_memory_bytes: Samples::new(vec![f64::from(31 << 20)]).unwrap(),
        };
        summary.goals.extend(figures.goals());
        summary.start = Some(figures);
        summary
    }

    #[test]
    fn programs_get_stable_names() {
        let json = serde_json::to_value(measured()).unwrap();
        assert_eq!(json["start"]["first_line_ms"]["median"], 41.0);
        assert_eq!(json["start"]["first_line_ms"]["values"][2], 44.0);
        assert_eq!(json["goals"][0]["figure"], "first_line_ms");
        assert_eq!(json["goals"][0]["bound"], "at_most");
        assert_eq!(json["goals"][0]["unit"], "milliseconds");
        assert_eq!(json["goals"][0]["reached"], true);
        assert_eq!(json["goals"][1]["reached"], false);
        assert!(json.get("idle").is_none());
        for key in ["cpu_model", "cpus", "memory_bytes", "kernel", "kvm_backend"] {
            assert!(json["host"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn people_get_the_machine_the_figures_and_the_goals() {
        let summary = measured();
        assert!(summary.heading().contains(&summary.host.cpu_model));
        assert!(summary.section(Scenario::Start).contains("first line"));
        assert_eq!(summary.section(Scenario::Idle), "");
        assert!(summary.goals_table().contains("missed"));
    }
}
