//! What the figures of disks that move are to reach.

use super::super::goal::{Bound, Goal};
use super::super::unit::Unit;
use super::figures::{DiskMoveFigures, MoverFigures, median};
use super::plan::DiskScenario;
use super::role::MoverRole;

/// Most of the page cache that a move may take.
const PAGE_CACHE: f64 = (64 << 20) as f64;

impl DiskMoveFigures {
    /// What these are to reach, as far as they were measured.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        use Bound::{AtLeast, AtMost};
        use Unit::{Bytes, Milliseconds, Ratio};
        let of = |role, figure: fn(&MoverFigures) -> Option<f64>| self.of(role).and_then(figure);
        let engine = |figure| of(MoverRole::Engine, figure);
        // Name, value, on which side, of what, unit.
        let wanted: Vec<(&'static str, Option<f64>, Bound, f64, Unit)> =
            if self.name == DiskScenario::Move.name() {
                let bulk = of(MoverRole::EngineForBulk, |c| c.bulk_to_plain_copy);
                vec![
                    (
                        "total_to_best_peer",
                        engine(|c| c.total_to_best_peer),
                        AtMost,
                        0.6,
                        Ratio,
                    ),
                    ("bulk_to_plain_copy", bulk, AtLeast, 0.9, Ratio),
                    (
                        "gap_added_ms",
                        engine(|c| c.gap_added_ms),
                        AtMost,
                        10.0,
                        Milliseconds,
                    ),
                    (
                        "write_p99_to_best_peer",
                        engine(|c| c.write_p99_to_best_peer),
                        AtMost,
                        0.5,
                        Ratio,
                    ),
                    (
                        "wire_to_data",
                        engine(|c| median(&c.wire_to_data)),
                        AtMost,
                        1.02,
                        Ratio,
                    ),
                    (
                        "page_cache_growth_bytes",
                        engine(|c| median(&c.page_cache_growth_bytes)),
                        AtMost,
                        PAGE_CACHE,
                        Bytes,
                    ),
                ]
            } else if self.name == DiskScenario::Downtime.name() {
                let four = of(MoverRole::EngineWithMoreDisks, |c| c.downtime_added_ms);
                vec![
                    (
                        "one_disk_downtime_added_ms",
                        engine(|c| c.downtime_added_ms),
                        AtMost,
                        1.0,
                        Milliseconds,
                    ),
                    (
                        "four_disks_downtime_added_ms",
                        four,
                        AtMost,
                        3.0,
                        Milliseconds,
                    ),
                ]
            } else if self.name == DiskScenario::Busy.name() {
                let sent = engine(|c| median(&c.disk_sent_to_data));
                vec![("disk_sent_to_data", sent, AtMost, 1.3, Ratio)]
            } else if self.name == DiskScenario::OnDemand.name() {
                let first = |figure| of(MoverRole::EngineForBulk, figure);
                let runs = first(|c| median(&c.runs_ms));
                let bulk = first(|c| c.bulk_to_plain_copy);
                vec![
                    ("runs_ms", runs, AtMost, 300.0, Milliseconds),
                    ("bulk_to_plain_copy", bulk, AtLeast, 0.9, Ratio),
                ]
            } else {
                Vec::new()
            };
        let reached = |(figure, value, bound, goal, unit)| -> Option<Goal> {
            let value: Option<f64> = value;
            Some(Goal::new(self.name, figure, value?, bound, goal, unit))
        };
        wanted.into_iter().filter_map(reached).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::link::Link;
    use super::super::plan::plan;
    use super::super::turn::DiskTurn;
    use super::*;

    fn figures(scenario: DiskScenario, movers: &[(MoverRole, DiskTurn)]) -> DiskMoveFigures {
        let movers = movers.iter().map(|(role, turn)| {
            MoverFigures::new(format!("{role:?}"), *role, std::slice::from_ref(turn), None)
        });
        let plan = plan(scenario, 1 << 30);
        DiskMoveFigures::new(&plan, &Link::loopback(), movers.collect(), None)
    }

    fn reached(figures: &DiskMoveFigures) -> Vec<(&'static str, bool)> {
        let goals = figures.goals();
        goals
            .iter()
            .map(|goal| (goal.figure, goal.reached))
            .collect()
    }

    #[test]
    fn a_guest_with_disks_is_to_move_in_little_more_than_one_without() {
        let downtime = |ms| DiskTurn {
            downtime_ms: Some(ms),
            ..DiskTurn::default()
        };
        let figures = figures(
            DiskScenario::Downtime,
            &[
                (MoverRole::EngineWithoutDisks, downtime(10.0)),
                (MoverRole::Engine, downtime(10.5)),
                (MoverRole::EngineWithMoreDisks, downtime(13.5)),
            ],
        );
        assert_eq!(
            reached(&figures),
            [
                ("one_disk_downtime_added_ms", true),
                ("four_disks_downtime_added_ms", false)
            ]
        );
    }

    #[test]
    fn only_what_was_measured_has_a_goal() {
        let turn = DiskTurn {
            wire_to_data: Some(1.01),
            ..DiskTurn::default()
        };
        let alone = figures(DiskScenario::Move, &[(MoverRole::Engine, turn)]);
        let (wire, cache) = ("wire_to_data", "page_cache_growth_bytes");
        assert_eq!(reached(&alone), [(wire, true), (cache, true)]);
        let sent = DiskTurn {
            disk_sent_to_data: Some(1.31),
            ..DiskTurn::default()
        };
        let busy = figures(DiskScenario::Busy, &[(MoverRole::Engine, sent)]);
        assert_eq!(reached(&busy), [("disk_sent_to_data", false)]);
        let local = figures(DiskScenario::Local, &[(MoverRole::Engine, sent)]);
        assert_eq!(reached(&local), []);
        let table = busy.table().text();
        assert!(
            table.contains("1.31") && !table.contains("I/O pause"),
            "{table}"
        );
    }
}
