//! The contenders take turns, and what they gave is summed up.

use control::units::human_ms;

use super::contender::Contender;
use super::error::BenchError;
use super::figures::{ContenderFigures, ScenarioFigures};
use super::hosts::Hosts;
use super::link::Link;
use super::progress::progress;
use super::scenario::Plan;
use super::terms::Terms;
use super::turn::Turn;

/// The turns of one contender.
struct Record {
    contender: Contender,
    turns: Vec<Turn>,
    gave_up: Option<String>,
}

/// Measures `runs` rounds of a scenario. In each round another contender goes first.
///
/// # Errors
/// When this engine or the limit could not be measured. A peer that fails is left out of the
/// further rounds, and why is told.
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
    };
    let mut records: Vec<_> = contenders
        .into_iter()
        .map(|contender| Record {
            contender,
            turns: Vec::new(),
            gave_up: None,
        })
        .collect();
    for run in 0..runs {
        for index in order(records.len(), run) {
            let record = &mut records[index];
            if record.gave_up.is_some() {
                continue;
            }
            let name = record.contender.name();
            match record.contender.turn(hosts, &plan.workload, &terms) {
                Ok(turn) => {
                    progress(format_args!(
                        "{} {}/{runs}: {name}: {}, gap {}",
                        plan.name,
                        run + 1,
                        human_ms(turn.total_ms()),
                        human_ms(turn.guest_gap_ms()),
                    ));
                    record.turns.push(turn);
                }
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) if matches!(record.contender, Contender::Qemu { .. }) => {
                    progress(format_args!("{}: {name} is left out: {error}", plan.name));
                    record.gave_up = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
    }
    let figures = records.iter().map(|record| {
        let gave_up = record.gave_up.clone();
        ContenderFigures::new(&record.contender, &record.turns, gave_up)
    });
    Ok(ScenarioFigures::new(plan, &link, figures.collect()))
}

/// The order of a round: it begins with another contender than the one before.
fn order(contenders: usize, round: u32) -> impl Iterator<Item = usize> {
    let first = usize::try_from(round).unwrap_or(0) % contenders.max(1);
    (0..contenders).map(move |turn| (first + turn) % contenders.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_contender_and_begins_with_another() {
        assert_eq!(order(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, 1).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(order(3, 5).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(order(0, 1).count(), 0);
    }
}
