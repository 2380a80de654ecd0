//! Figures of the disks: each contender's, and how they compare.

use control::units::{ByteSize, human_ms};
use serde::Serialize;

use super::super::goal::{Bound, Goal};
use super::super::stats::Samples;
use super::super::table::Table;
use super::super::unit::Unit;
use super::cell::Cell;

/// Figures of one format of images. Field names are a stable contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskIopsFigures {
    /// Format of the image.
    pub format: &'static str,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes of a request.
    pub request_bytes: u64,
    /// Kinds of requests.
    pub cells: Vec<CellFigures>,
}

/// Figures of one kind of request at one depth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellFigures {
    /// What was asked for.
    #[serde(flatten)]
    pub cell: Cell,
    /// The contenders.
    pub contenders: Vec<DiskContenderFigures>,
    /// The peer with the most requests a second, of those that are compared with.
    pub best_peer: Option<String>,
}

/// Figures of one contender. What was not measured is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskContenderFigures {
    /// Its name.
    pub name: String,
    /// What it is to the comparison.
    pub role: DiskRole,
    /// Why it was left out of further rounds.
    pub gave_up: Option<String>,
    /// Requests a second.
    pub iops: Option<Samples>,
    /// Half of all took no longer.
    pub p50_ms: Option<Samples>,
    /// 99 of 100 took no longer.
    pub p99_ms: Option<Samples>,
    /// Median of `iops` over that of the best peer.
    pub iops_to_best_peer: Option<f64>,
    /// Median of `p99_ms` over that of the best peer.
    pub p99_to_best_peer: Option<f64>,
}

/// What a contender is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// This engine.
    Engine,
    /// This engine past the page cache.
    DirectEngine,
    /// A peer that it is compared with.
    Peer,
    /// A peer that is shown beside.
    FurtherPeer,
}

/// What one turn gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DiskTurn {
    pub iops: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl DiskContenderFigures {
    /// Sums up the turns of a contender.
    pub(super) fn new(
        name: String,
        role: DiskRole,
        turns: &[DiskTurn],
        gave_up: Option<String>,
    ) -> Self {
        Self {
            name,
            role,
            gave_up,
            iops: Samples::of(turns, |turn| turn.iops),
            p50_ms: Samples::of(turns, |turn| turn.p50_ms),
            p99_ms: Samples::of(turns, |turn| turn.p99_ms),
            iops_to_best_peer: None,
            p99_to_best_peer: None,
        }
    }
}

fn median(samples: Option<&Samples>) -> Option<f64> {
    samples.map(|samples| samples.median)
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    of.zip(to.filter(|to| *to > 0.0)).map(|(of, to)| of / to)
}

impl CellFigures {
    /// Compares the contenders.
    pub(super) fn new(cell: Cell, mut contenders: Vec<DiskContenderFigures>) -> Self {
        let peers = contenders.iter().filter(|c| c.role == DiskRole::Peer);
        let best = peers
            .filter_map(|c| Some((median(c.iops.as_ref())?, c)))
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, contender)| contender.clone());
        if let Some(best) = &best {
            for contender in &mut contenders {
                contender.iops_to_best_peer =
                    ratio(median(contender.iops.as_ref()), median(best.iops.as_ref()));
                contender.p99_to_best_peer = ratio(
                    median(contender.p99_ms.as_ref()),
                    median(best.p99_ms.as_ref()),
                );
            }
        }
        Self {
            cell,
            contenders,
            best_peer: best.map(|best| best.name),
        }
    }
}

impl DiskIopsFigures {
    /// The name of the scenario.
    pub(crate) const NAME: &str = "disk-iops";

    /// What the disks are, in a line.
    pub(crate) fn title(&self, runs: u32) -> String {
        format!(
            "{}: random requests of {} on a {} disk of {}, one vCPU that spins, {runs} runs",
            Self::NAME,
            ByteSize(self.request_bytes),
            self.format,
            ByteSize(self.disk_bytes)
        )
    }

    /// The table for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(&[
            "",
            "IOPS",
            "min",
            "max",
            "p50",
            "p99",
            "worst p99",
            "IOPS to best QEMU",
            "p99 to it",
        ]);
        for figures in &self.cells {
            for contender in &figures.contenders {
                let mut cells = vec![format!("{}: {}", figures.cell, contender.name)];
                let measured = contender
                    .iops
                    .as_ref()
                    .zip(contender.p50_ms.as_ref())
                    .zip(contender.p99_ms.as_ref());
                let Some(((iops, p50), p99)) = measured else {
                    cells.push("left out".to_owned());
                    table.row(cells);
                    continue;
                };
                cells.extend([iops.median, iops.min, iops.max].map(|n| format!("{n:.0}")));
                cells.extend([p50.median, p99.median, p99.max].map(human_ms));
                let ratio = |ratio: Option<f64>| {
                    ratio.map_or_else(|| "-".to_owned(), |ratio| Unit::Ratio.show(ratio))
                };
                cells.push(ratio(contender.iops_to_best_peer));
                cells.push(ratio(contender.p99_to_best_peer));
                table.row(cells);
            }
        }
        table
    }

    /// Who was left out and why, for people.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let contenders = self.cells.iter().flat_map(|figures| {
            figures
                .contenders
                .iter()
                .map(move |contender| (figures.cell, contender))
        });
        contenders
            .filter_map(|(cell, contender)| {
                let why = contender.gave_up.as_ref()?;
                Some(format!("{} was left out of {cell}: {why}", contender.name))
            })
            .collect()
    }

    /// What these figures are to reach.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let engines = self.cells.iter().flat_map(|figures| {
            let contenders = figures.contenders.iter();
            contenders.filter_map(move |contender| {
                let scenario = match (contender.role, self.format) {
                    (DiskRole::Engine, "raw") => Self::NAME,
                    (DiskRole::Engine, _) => "disk-iops-qcow2",
                    (DiskRole::DirectEngine, _) => "disk-iops-direct",
                    (DiskRole::Peer | DiskRole::FurtherPeer, _) => return None,
                };
                Some((scenario, figures.cell, contender))
            })
        });
        engines
            .flat_map(|(scenario, cell, engine)| {
                let [iops, p99] = cell.goals();
                let goals = [
                    (iops, engine.iops_to_best_peer, Bound::AtLeast),
                    (p99, engine.p99_to_best_peer, Bound::AtMost),
                ];
                goals.into_iter().filter_map(move |(figure, value, bound)| {
                    Some(Goal::new(scenario, figure, value?, bound, 1.0, Unit::Ratio))
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, role: DiskRole, iops: &[f64], p99_ms: f64) -> DiskContenderFigures {
        let turn = |iops: &f64| DiskTurn {
            iops: *iops,
            p50_ms: p99_ms / 2.0,
            p99_ms,
        };
        let turns: Vec<_> = iops.iter().map(turn).collect();
        DiskContenderFigures::new(name.to_owned(), role, &turns, None)
    }

    #[test]
    fn the_engine_is_compared_with_the_fastest_peer_that_goes_by_io_uring() {
        let contenders = vec![
            contender("vmm", DiskRole::Engine, &[30.0, 20.0, 10.0], 0.3),
            contender("vmm, direct", DiskRole::DirectEngine, &[8.0], 0.1),
            contender("slow", DiskRole::Peer, &[5.0], 0.1),
            contender("fast", DiskRole::Peer, &[16.0], 0.2),
            contender("beside", DiskRole::FurtherPeer, &[100.0], 0.2),
            contender("absent", DiskRole::Peer, &[], 0.2),
        ];
        let cell = CellFigures::new(Cell::ALL[0], contenders);
        assert_eq!(cell.best_peer.as_deref(), Some("fast"));
        let figures = DiskIopsFigures {
            format: "raw",
            disk_bytes: 1 << 28,
            request_bytes: 4096,
            cells: vec![cell],
        };
        let goals = figures.goals();
        let reached: Vec<_> = goals
            .iter()
            .map(|g| (g.scenario, g.figure, g.value, g.reached))
            .collect();
        let (iops, p99) = ("read_1_iops_to_best_peer", "read_1_p99_to_best_peer");
        assert_eq!(
            reached,
            [
                ("disk-iops", iops, 1.25, true),
                ("disk-iops", p99, 0.3 / 0.2, false),
                ("disk-iops-direct", iops, 0.5, false),
                ("disk-iops-direct", p99, 0.5, true),
            ]
        );
        let qcow2 = DiskIopsFigures {
            format: "qcow2",
            ..figures.clone()
        };
        assert_eq!(qcow2.goals()[0].scenario, "disk-iops-qcow2");
        let text = figures.table().text();
        assert!(
            text.contains("read at depth 1: vmm") && text.contains("left out"),
            "{text}"
        );
    }
}
