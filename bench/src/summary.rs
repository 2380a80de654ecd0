//! All figures of a benchmark, for programs and for people.

use control::units::human_bytes;
use serde::Serialize;

use super::disk_iops::DiskIopsFigures;
use super::disk_moves::DiskMoveFigures;
use super::disk_tracking::TrackingFigures;
use super::figures::ScenarioFigures;
use super::goal::Goal;
use super::host::HostDescription;
use super::options::BenchOptions;
use super::report;
use super::start::{STARTS, StartFigures};

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
    /// Connections of this engine and of the plain copy.
    pub streams: u8,
    /// Versions of the peers.
    pub peers: Vec<String>,
    /// Peers that were looked for in vain, and why.
    pub absent: Vec<String>,
    /// What was measured of moving guests.
    pub scenarios: Vec<ScenarioFigures>,
    /// Starting a guest, unless it was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartFigures>,
    /// Random requests of disks, of each format of images, unless that was left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk_iops: Vec<DiskIopsFigures>,
    /// What tracking costs, unless it was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_tracking: Option<TrackingFigures>,
    /// Disks that moved, one of each scenario, unless they were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk_moves: Vec<DiskMoveFigures>,
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
            streams: options.limit_streams(),
            peers: Vec::new(),
            absent: Vec::new(),
            scenarios: Vec::new(),
            start: None,
            disk_iops: Vec::new(),
            disk_tracking: None,
            disk_moves: Vec::new(),
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
        let peers = if self.peers.is_empty() {
            "none".to_owned()
        } else {
            self.peers.join(", ")
        };
        let mut text = format!(
            "vmm {version} ({build} build{note}), {} streams\n{}, {} CPUs, {} of memory, Linux {}, {}, \
             huge pages in shared memory: {}\npeers: {peers}\n",
            self.streams,
            host.cpu_model,
            host.cpus,
            human_bytes(host.memory_bytes as f64),
            host.kernel,
            host.kvm_backend,
            host.shmem_huge_pages,
        );
        for absent in &self.absent {
            text += &format!("absent: {absent}\n");
        }
        text
    }

    /// The tables of a scenario.
    pub(super) fn section(&self, figures: &ScenarioFigures) -> String {
        let mut text = format!(
            "{}\n{}",
            report::title(figures, self.runs),
            report::contenders(figures).text()
        );
        for contender in &figures.contenders {
            if let Some(why) = &contender.gave_up {
                text += &format!("  {} was left out: {why}\n", contender.name);
            }
        }
        if let Some(engine) = figures.engine().and_then(|vmm| vmm.engine.as_ref()) {
            text += &format!("  vmm by its own report\n{}", report::engine(engine).text());
        }
        text
    }

    /// The table of starts.
    pub(super) fn start_section(&self) -> String {
        let title = format!("start: `vmm run` to the guest's first line, {STARTS} starts");
        self.start.as_ref().map_or_else(String::new, |figures| {
            format!("{title}\n{}", figures.table().text())
        })
    }

    /// The tables of disks.
    pub(super) fn disks_section(&self) -> String {
        let mut text = String::new();
        for figures in &self.disk_iops {
            text += &format!("{}\n{}", figures.title(self.runs), figures.table().text());
            for line in figures.left_out() {
                text += &format!("  {line}\n");
            }
        }
        text
    }

    /// The table of what tracking costs.
    pub(super) fn tracking_section(&self) -> String {
        self.disk_tracking
            .as_ref()
            .map_or_else(String::new, |figures| {
                format!("{}\n{}", figures.title(), figures.table().text())
            })
    }

    /// The table of a scenario in which disks moved.
    pub(super) fn disk_moves_section(&self, figures: &DiskMoveFigures) -> String {
        let mut text = format!("{}\n{}", figures.title(self.runs), figures.table().text());
        for line in figures.left_out() {
            text += &format!("  {line}\n");
        }
        text
    }

    /// The goals and whether they are reached.
    pub(super) fn goals_section(&self) -> String {
        format!("goals\n{}", report::goals(&self.goals).text())
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
        summary.absent.push("no such peer".to_owned());
        summary
    }

    #[test]
    fn programs_get_stable_names() {
        let json = serde_json::to_value(measured()).unwrap();
        assert_eq!(json["start"]["first_line_ms"]["median"], 41.0);
        assert_eq!(json["start"]["first_line_ms"]["values"][2], 44.0);
        assert_eq!(json["goals"][0]["scenario"], "start");
        assert_eq!(json["goals"][0]["figure"], "first_line_ms");
        assert_eq!(json["goals"][0]["bound"], "at_most");
        assert_eq!(json["goals"][0]["unit"], "milliseconds");
        assert_eq!(json["goals"][0]["reached"], true);
        assert_eq!(json["goals"][1]["reached"], false);
        assert_eq!(json["absent"][0], "no such peer");
        for key in ["cpu_model", "cpus", "memory_bytes", "kernel", "kvm_backend"] {
            assert!(json["host"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn people_get_the_machine_the_figures_and_the_goals() {
        let summary = measured();
        let heading = summary.heading();
        assert!(heading.contains(&summary.host.cpu_model));
        assert!(
            heading.contains("peers: none\nabsent: no such peer"),
            "{heading}"
        );
        assert!(summary.start_section().contains("first line"));
        assert!(summary.goals_section().contains("missed"));
    }
}
