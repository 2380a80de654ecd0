//! A scenario in which a guest's memory is moved: the contenders take turns, and what they gave is
//! summed up.

use control::units::human_ms;

use super::contender::Contender;
use super::error::BenchError;
use super::figures::{ContenderFigures, ScenarioFigures};
use super::hosts::Hosts;
use super::link::Link;
use super::rounds::{TakesTurns, take_turns};
use super::scenario::Plan;
use super::terms::Terms;
use super::turn::Turn;

impl TakesTurns for Contender {
    fn name(&self) -> String {
        self.name()
    }

    fn is_left_out_after(&self, _: &BenchError) -> bool {
        matches!(self, Self::Qemu { .. })
    }
}

/// Measures `runs` rounds of a scenario.
///
/// # Errors
/// When this engine or the limit could not be measured.
pub(super) fn measure(
    hosts: &Hosts,
    plan: &Plan,
    contenders: Vec<Contender>,
    runs: u32,
) -> Result<ScenarioFigures, BenchError> {
    let link = Link::of(plan.link_rate);
    let terms = Terms {
        link: &link,
        downtime_limit_ms: plan.downtime_limit_ms,
        patience: plan.patience,
        warmth: plan.warmth,
        disks: &[],
    };
    let records = take_turns(
        plan.name,
        contenders,
        runs,
        |contender| contender.turn(hosts, &plan.workload, &terms),
        tell,
    )?;
    let figures = records
        .into_iter()
        .map(|record| ContenderFigures::new(&record.contender, &record.turns, record.gave_up));
    Ok(ScenarioFigures::new(plan, &link, figures.collect()))
}

fn tell(turn: &Turn) -> String {
    format!(
        "{}, gap {}",
        human_ms(turn.total_ms()),
        human_ms(turn.guest_gap_ms())
    )
}
