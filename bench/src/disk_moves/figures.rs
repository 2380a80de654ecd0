//! Figures of disks that move: each contender's, and how they compare.

use serde::Serialize;

use super::super::guest::Workload;
use super::super::link::Link;
use super::super::stats::Samples;
use super::plan::DiskPlan;
use super::role::MoverRole;
use super::turn::DiskTurn;

/// Figures of one scenario. Field names are a stable contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskMoveFigures {
    /// Its name, as `--scenario` takes it.
    pub name: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    /// What the guest does beside its disks.
    pub guest: Workload,
    /// Bytes of a disk.
    pub disk_bytes: u64,
    /// Bytes of it that hold data.
    pub disk_data_bytes: u64,
    /// Bytes that the guest writes to each disk a second, where the storage takes as much.
    pub written_bytes_per_s: u64,
    /// What lies between the hosts, for people.
    pub link: String,
    /// The contenders.
    pub contenders: Vec<MoverFigures>,
    /// The peer with the smallest median of `total_ms`.
    pub best_peer: Option<String>,
    /// The peer with the smallest median of `write_p99_ms`.
    pub smoothest_peer: Option<String>,
    /// Why there is no plain copy, where there should be.
    pub no_plain_copy: Option<String>,
}

/// Figures of one contender. What it does not tell or was not measured is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MoverFigures {
    /// Its name.
    pub name: String,
    /// What it is to the comparison.
    pub role: MoverRole,
    /// Why it was left out of further rounds.
    pub gave_up: Option<String>,
    /// From the request until the guest runs at the destination, or its disk is at the new path.
    pub total_ms: Option<Samples>,
    /// From the request until the guest runs at the destination, where that is before all of its disk is there.
    pub runs_ms: Option<Samples>,
    /// Largest gap that the guest saw.
    pub guest_gap_ms: Option<Samples>,
    /// Guest stopped to guest running, by the engine's report.
    pub downtime_ms: Option<Samples>,
    /// How long requests waited when a disk went over on its host, by the engine's report.
    pub io_pause_ms: Option<Samples>,
    /// 99 of 100 writes of the guest during the move took no longer.
    pub write_p99_ms: Option<Samples>,
    /// The longest one.
    pub write_max_ms: Option<Samples>,
    /// Writes of the guest a second during the move.
    pub writes_per_s: Option<Samples>,
    /// CPU seconds of both sides without vCPUs.
    pub cpu_s: Option<Samples>,
    /// Bytes that went over, memory and disks together.
    pub wire_bytes: Option<Samples>,
    /// Those over the bytes of memory and disks that held data.
    pub wire_to_data: Option<Samples>,
    /// Bytes of disks that were sent, again among them, over those that held data.
    pub disk_sent_to_data: Option<Samples>,
    /// Bytes of disks that held data over the whole time, a second.
    pub bulk_bytes_per_s: Option<Samples>,
    /// By how much the host's page cache grew.
    pub page_cache_growth_bytes: Option<Samples>,
    /// Median of `total_ms` over that of the best peer.
    pub total_to_best_peer: Option<f64>,
    /// Median of `write_p99_ms` over the smallest of a peer.
    pub write_p99_to_best_peer: Option<f64>,
    /// Median of `bulk_bytes_per_s` over that of the plain copy.
    pub bulk_to_plain_copy: Option<f64>,
    /// Median of `guest_gap_ms` beyond that without disks.
    pub gap_added_ms: Option<f64>,
    /// Median of `downtime_ms` beyond that without disks.
    pub downtime_added_ms: Option<f64>,
}

impl MoverFigures {
    /// Sums up the turns of a contender.
    pub(super) fn new(
        name: String,
        role: MoverRole,
        turns: &[DiskTurn],
        gave_up: Option<String>,
    ) -> Self {
        let of = |figure: fn(&DiskTurn) -> Option<f64>| {
            Samples::new(turns.iter().filter_map(figure).collect())
        };
        Self {
            name,
            role,
            gave_up,
            total_ms: of(|turn| Some(turn.total_ms)),
            runs_ms: of(|turn| turn.runs_ms),
            guest_gap_ms: of(|turn| turn.guest_gap_ms),
            downtime_ms: of(|turn| turn.downtime_ms),
            io_pause_ms: of(|turn| turn.io_pause_ms),
            write_p99_ms: of(|turn| turn.beside.write_p99_ms),
            write_max_ms: of(|turn| turn.beside.write_max_ms),
            writes_per_s: of(|turn| turn.beside.writes_per_s),
            cpu_s: of(|turn| turn.cpu_s),
            wire_bytes: of(|turn| turn.wire_bytes),
            wire_to_data: of(|turn| turn.wire_to_data),
            disk_sent_to_data: of(|turn| turn.disk_sent_to_data),
            bulk_bytes_per_s: of(|turn| turn.bulk_bytes_per_s),
            page_cache_growth_bytes: of(|turn| Some(turn.beside.page_cache_growth_bytes)),
            total_to_best_peer: None,
            write_p99_to_best_peer: None,
            bulk_to_plain_copy: None,
            gap_added_ms: None,
            downtime_added_ms: None,
        }
    }
}

/// The median of a figure.
pub(super) fn median(samples: &Option<Samples>) -> Option<f64> {
    samples.as_ref().map(|samples| samples.median)
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    of.zip(to.filter(|to| *to > 0.0)).map(|(of, to)| of / to)
}

impl DiskMoveFigures {
    /// Compares the contenders.
    pub(super) fn new(
        plan: &DiskPlan,
        link: &Link,
        mut contenders: Vec<MoverFigures>,
        no_plain_copy: Option<String>,
    ) -> Self {
        let best_peer = |figure: fn(&MoverFigures) -> Option<f64>| {
            let peers = contenders.iter().filter(|c| c.role == MoverRole::Peer);
            peers
                .filter_map(|c| Some((figure(c)?, c.name.clone())))
                .min_by(|(a, _), (b, _)| a.total_cmp(b))
        };
        let best = best_peer(|c| median(&c.total_ms));
        let smoothest = best_peer(|c| median(&c.write_p99_ms));
        let of = |role, figure: fn(&MoverFigures) -> Option<f64>| {
            contenders.iter().find(|c| c.role == role).and_then(figure)
        };
        let copied = of(MoverRole::PlainCopy, |c| median(&c.bulk_bytes_per_s));
        let gap = of(MoverRole::EngineWithoutDisks, |c| median(&c.guest_gap_ms));
        let downtime = of(MoverRole::EngineWithoutDisks, |c| median(&c.downtime_ms));
        let added = |of: Option<f64>, to: Option<f64>| of.zip(to).map(|(of, to)| of - to);
        for contender in &mut contenders {
            let is_engine_with_disks = match contender.role {
                MoverRole::Engine | MoverRole::FurtherEngine | MoverRole::EngineWithMoreDisks => {
                    true
                }
                // A guest of another size is compared with the plain copy only.
                MoverRole::EngineForBulk => {
                    contender.bulk_to_plain_copy =
                        ratio(median(&contender.bulk_bytes_per_s), copied);
                    false
                }
                MoverRole::EngineWithoutDisks | MoverRole::Peer | MoverRole::PlainCopy => false,
            };
            if is_engine_with_disks {
                contender.gap_added_ms = added(median(&contender.guest_gap_ms), gap);
                contender.downtime_added_ms = added(median(&contender.downtime_ms), downtime);
            }
            if is_engine_with_disks || contender.role == MoverRole::Peer {
                let of = |best: &Option<(f64, String)>| best.as_ref().map(|(value, _)| *value);
                contender.total_to_best_peer = ratio(median(&contender.total_ms), of(&best));
                contender.write_p99_to_best_peer =
                    ratio(median(&contender.write_p99_ms), of(&smoothest));
            }
        }
        Self {
            name: plan.name,
            what: plan.what,
            guest: plan.workload,
            disk_bytes: plan.disk_bytes,
            disk_data_bytes: plan.data_bytes,
            written_bytes_per_s: plan.load.rate * plan.load.size,
            link: link.to_string(),
            contenders,
            best_peer: best.map(|(_, name)| name),
            smoothest_peer: smoothest.map(|(_, name)| name),
            no_plain_copy,
        }
    }

    /// The contender of a role.
    pub(super) fn of(&self, role: MoverRole) -> Option<&MoverFigures> {
        self.contenders.iter().find(|c| c.role == role)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{DiskScenario, plan};
    use super::*;

    fn mover(name: &str, role: MoverRole, turn: DiskTurn) -> MoverFigures {
        MoverFigures::new(name.to_owned(), role, &[turn], None)
    }

    fn turn(total_ms: f64, gap: f64, p99: f64) -> DiskTurn {
        let mut turn = DiskTurn {
            total_ms,
            guest_gap_ms: Some(gap),
            downtime_ms: Some(gap / 2.0),
            bulk_bytes_per_s: Some(1e9 / total_ms),
            ..DiskTurn::default()
        };
        turn.beside.write_p99_ms = Some(p99);
        turn
    }

    #[test]
    fn each_figure_is_compared_with_what_it_is_to_be_measured_by() {
        let plan = plan(DiskScenario::Move, 1 << 30);
        let contenders = vec![
            mover("vmm", MoverRole::Engine, turn(500.0, 8.0, 1.0)),
            mover("none", MoverRole::EngineWithoutDisks, turn(100.0, 4.0, 9.0)),
            mover("bulk", MoverRole::EngineForBulk, turn(250.0, 4.0, 9.0)),
            mover("copy", MoverRole::PlainCopy, turn(200.0, 4.0, 9.0)),
            mover("fast", MoverRole::Peer, turn(1000.0, 90.0, 4.0)),
            mover("smooth", MoverRole::Peer, turn(2000.0, 90.0, 2.0)),
            MoverFigures::new("gone".to_owned(), MoverRole::Peer, &[], Some("why".into())),
        ];
        let figures = DiskMoveFigures::new(&plan, &Link::loopback(), contenders, None);
        assert_eq!(figures.best_peer.as_deref(), Some("fast"));
        assert_eq!(figures.smoothest_peer.as_deref(), Some("smooth"));
        let engine = figures.of(MoverRole::Engine).unwrap();
        assert_eq!(engine.total_to_best_peer, Some(0.5));
        assert_eq!(engine.write_p99_to_best_peer, Some(0.5));
        assert_eq!(engine.gap_added_ms, Some(4.0));
        assert_eq!(engine.downtime_added_ms, Some(2.0));
        assert_eq!(engine.bulk_to_plain_copy, None);
        let bulk = figures.of(MoverRole::EngineForBulk).unwrap();
        assert_eq!(bulk.bulk_to_plain_copy, Some(0.8));
        assert_eq!(bulk.total_to_best_peer, None);
        let without = figures.of(MoverRole::EngineWithoutDisks).unwrap();
        assert_eq!(without.gap_added_ms, None);
        assert_eq!(figures.contenders[6].total_ms, None);
    }
}
