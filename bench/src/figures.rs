//! Figures of a scenario: each contender's, and how they compare.

use serde::Serialize;

use super::contender::Contender;
use super::guest::Workload;
use super::link::Link;
use super::moved::{EngineParts, Move};
use super::role::Role;
use super::scenario::Plan;
use super::stats::Samples;
use super::turn::Turn;

/// Figures of a scenario. Field names are a stable contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScenarioFigures {
    /// Its name, as `--scenario` takes it.
    pub name: &'static str,
    /// What the guest does, for people.
    pub what: &'static str,
    /// What the guest does.
    pub guest: Workload,
    /// What lies between the hosts, for people.
    pub link: String,
    /// Bytes a second that it carries, where it is slow.
    pub link_bytes_per_s: Option<u64>,
    /// Downtime limit of all contenders, unless their name tells another.
    pub downtime_limit_ms: u64,
    /// The contenders.
    pub contenders: Vec<ContenderFigures>,
    /// The peer with the smallest median of `total_ms`, prepared ones aside.
    pub best_peer: Option<String>,
    /// The peer with the smallest median of `guest_gap_ms`, prepared ones aside.
    pub smallest_gap_peer: Option<String>,
    /// Where memory was ready before the time was taken: median of this engine's `total_ms` over the
    /// smallest of a peer.
    pub prepared_total_to_prepared_peer: Option<f64>,
}

/// Figures of one contender. What it does not tell or was not measured is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContenderFigures {
    /// Its name.
    pub name: String,
    /// What it is to the comparison.
    pub role: Role,
    /// Why it was left out of further rounds.
    pub gave_up: Option<String>,
    /// From the request until the source has completed and the guest runs at the destination; of
    /// the limit, from the first byte sent to the last placed.
    pub total_ms: Option<Samples>,
    /// From the request until the guest's first tick at the destination was seen.
    pub first_tick_ms: Option<Samples>,
    /// Largest gap that the guest saw; of the limit, that of the guest which spins beside it.
    pub guest_gap_ms: Option<Samples>,
    /// CPU seconds of both sides without vCPUs.
    pub cpu_s: Option<Samples>,
    /// Those of the source, its end included.
    pub source_cpu_s: Option<Samples>,
    /// Those of the destination.
    pub destination_cpu_s: Option<Samples>,
    /// Bytes that left the source, by its own report.
    pub wire_bytes: Option<Samples>,
    /// Pages that the guest dirtied a second meanwhile.
    pub dirtied_pages_per_s: Option<Samples>,
    /// From the start of the destination process until it waits for a guest; not in `total_ms`.
    pub prepare_ms: Option<Samples>,
    /// Median of `total_ms` over that of the best peer.
    pub total_to_best_peer: Option<f64>,
    /// Median of `guest_gap_ms` over the smallest of a peer.
    pub gap_to_best_peer: Option<f64>,
    /// Median of `cpu_s` over that of the best peer.
    pub cpu_to_best_peer: Option<f64>,
    /// Median of the plain copy into cold memory over that of `total_ms`.
    pub share_of_cold_limit: Option<f64>,
    /// The same for populated memory.
    pub share_of_populated_limit: Option<f64>,
    /// What only this engine tells.
    pub engine: Option<EngineFigures>,
}

/// Figures of this engine's own report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineFigures {
    /// Negotiate and prepare.
    pub setup_ms: Samples,
    /// Guest stopped to guest running.
    pub downtime_ms: Samples,
    /// Stopping the vCPUs and draining the devices.
    pub stop_ms: Samples,
    /// Saving the state of the machine.
    pub state_save_ms: Samples,
    /// Loading it.
    pub state_load_ms: Samples,
    /// Bytes on the wire beside the contents of pages that hold data.
    pub overhead_wire_bytes: Samples,
    /// How much more guest memory the destination had allocated right after the move than the
    /// source before it.
    pub extra_allocated_bytes: Samples,
}

impl ScenarioFigures {
    /// Compares the contenders.
    pub(super) fn new(plan: &Plan, link: &Link, mut contenders: Vec<ContenderFigures>) -> Self {
        let best_of = |role, figure: fn(&ContenderFigures) -> Option<f64>| {
            contenders
                .iter()
                .filter(|c| c.role == role)
                .filter_map(|c| Some((figure(c)?, c)))
                .min_by(|(a, _), (b, _)| a.total_cmp(b))
                .map(|(_, contender)| contender.clone())
        };
        let best_peer = best_of(Role::Peer, |c| median(&c.total_ms));
        let smallest_gap_peer = best_of(Role::Peer, |c| median(&c.guest_gap_ms));
        let prepared = [Role::PreparedEngine, Role::PreparedPeer]
            .map(|role| best_of(role, |c| median(&c.total_ms)).and_then(|c| median(&c.total_ms)));
        let total_of = |role| {
            let limit = contenders.iter().find(|c| c.role == role)?;
            median(&limit.total_ms)
        };
        let (cold, populated) = (total_of(Role::ColdLimit), total_of(Role::PopulatedLimit));
        for contender in &mut contenders {
            let total = median(&contender.total_ms);
            if !matches!(contender.role, Role::ColdLimit | Role::PopulatedLimit) {
                let best = best_peer.as_ref();
                contender.total_to_best_peer = ratio(total, best.and_then(|b| median(&b.total_ms)));
                contender.cpu_to_best_peer = ratio(
                    median(&contender.cpu_s),
                    best.and_then(|b| median(&b.cpu_s)),
                );
                contender.gap_to_best_peer = ratio(
                    median(&contender.guest_gap_ms),
                    smallest_gap_peer
                        .as_ref()
                        .and_then(|b| median(&b.guest_gap_ms)),
                );
                contender.share_of_cold_limit = ratio(cold, total);
                contender.share_of_populated_limit = ratio(populated, total);
            }
        }
        Self {
            name: plan.name,
            what: plan.what,
            guest: plan.workload,
            link: link.to_string(),
            link_bytes_per_s: plan.link_rate,
            downtime_limit_ms: plan.downtime_limit_ms,
            contenders,
            best_peer: best_peer.map(|c| c.name),
            smallest_gap_peer: smallest_gap_peer.map(|c| c.name),
            prepared_total_to_prepared_peer: ratio(prepared[0], prepared[1]),
        }
    }

    /// This engine.
    pub fn engine(&self) -> Option<&ContenderFigures> {
        self.of(Role::Engine)
    }

    /// This engine where the destination had the memory ready.
    pub fn prepared_engine(&self) -> Option<&ContenderFigures> {
        self.of(Role::PreparedEngine)
    }

    fn of(&self, role: Role) -> Option<&ContenderFigures> {
        self.contenders.iter().find(|c| c.role == role)
    }
}

fn median(samples: &Option<Samples>) -> Option<f64> {
    samples.as_ref().map(|samples| samples.median)
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    of.zip(to.filter(|to| *to > 0.0)).map(|(of, to)| of / to)
}

impl ContenderFigures {
    /// Sums up the turns of a contender.
    pub(super) fn new(contender: &Contender, turns: &[Turn], gave_up: Option<String>) -> Self {
        let moves: Vec<&Move> = turns
            .iter()
            .filter_map(|turn| match turn {
                Turn::Moved(moved) => Some(moved),
                Turn::Copied(_) => None,
            })
            .collect();
        let parts: Vec<EngineParts> = moves.iter().filter_map(|moved| moved.engine).collect();
        Self {
            name: contender.name(),
            role: contender.role(),
            gave_up,
            total_ms: Samples::of(turns, Turn::total_ms),
            guest_gap_ms: Samples::of(turns, Turn::guest_gap_ms),
            cpu_s: Samples::of(turns, |turn| match turn {
                Turn::Moved(moved) => moved.source_cpu_s + moved.destination_cpu_s,
                Turn::Copied(copied) => copied.cpu_s,
            }),
            wire_bytes: Samples::of(turns, |turn| match turn {
                Turn::Moved(moved) => moved.wire_bytes as f64,
                Turn::Copied(copied) => copied.bytes as f64,
            }),
            first_tick_ms: Samples::of(&moves, |moved| moved.first_tick_ms),
            source_cpu_s: Samples::of(&moves, |moved| moved.source_cpu_s),
            destination_cpu_s: Samples::of(&moves, |moved| moved.destination_cpu_s),
            dirtied_pages_per_s: Samples::of(&moves, |moved| moved.dirtied_pages_per_s),
            prepare_ms: Samples::of(&moves, |moved| moved.prepare_ms),
            total_to_best_peer: None,
            gap_to_best_peer: None,
            cpu_to_best_peer: None,
            share_of_cold_limit: None,
            share_of_populated_limit: None,
            engine: EngineFigures::of(&parts),
        }
    }
}

impl EngineFigures {
    fn of(parts: &[EngineParts]) -> Option<Self> {
        Some(Self {
            setup_ms: Samples::of(parts, |part| part.setup_ms)?,
            downtime_ms: Samples::of(parts, |part| part.downtime_ms)?,
            stop_ms: Samples::of(parts, |part| part.stop_ms)?,
            state_save_ms: Samples::of(parts, |part| part.state_save_ms)?,
            state_load_ms: Samples::of(parts, |part| part.state_load_ms)?,
            overhead_wire_bytes: Samples::of(parts, |part| part.overhead_wire_bytes as f64)?,
            extra_allocated_bytes: Samples::of(parts, |part| part.extra_allocated_bytes as f64)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::Pages;
    use super::super::scenario::Scenario;
    use super::super::turn::Copied;
    use super::super::watch::Beside;
    use super::*;

    fn moved(total_ms: f64, guest_gap_ms: f64) -> Turn {
        Turn::Moved(Move {
            prepare_ms: 1.0,
            total_ms,
            first_tick_ms: total_ms + 50.0,
            guest_gap_ms,
            source_cpu_s: 0.25,
            destination_cpu_s: 0.5,
            wire_bytes: 1 << 30,
            dirtied_pages_per_s: 0.0,
            beside: Beside::default(),
            engine: None,
        })
    }

    fn figures(role: Role, name: &str, turns: &[Turn]) -> ContenderFigures {
        let engine = Contender::Engine {
            streams: None,
            pages: Pages::Cold,
        };
        ContenderFigures {
            role,
            name: name.to_owned(),
            ..ContenderFigures::new(&engine, turns, None)
        }
    }

    #[test]
    fn contenders_are_compared_with_the_best_peer_and_the_limits() {
        let limit = Contender::Limit {
            streams: 2,
            pages: Pages::Cold,
        };
        let copied = Turn::Copied(Copied {
            total_ms: 400.0,
            guest_gap_ms: 3.0,
            cpu_s: 0.5,
            bytes: 1 << 30,
        });
        let contenders = vec![
            figures(
                Role::Engine,
                "vmm",
                &[moved(500.0, 5.0), moved(600.0, 6.0), moved(9e9, 5.5)],
            ),
            figures(Role::Peer, "fast", &[moved(1000.0, 30.0)]),
            figures(Role::Peer, "gentle", &[moved(2000.0, 20.0)]),
            figures(Role::PreparedPeer, "prepared", &[moved(10.0, 1.0)]),
            figures(Role::PreparedEngine, "vmm, prepared", &[moved(5.0, 1.0)]),
            figures(Role::Peer, "absent", &[]),
            ContenderFigures::new(&limit, &[copied], None),
        ];
        let plan = Scenario::Idle.plan(1 << 30).unwrap();
        let figures = ScenarioFigures::new(&plan, &Link::loopback(), contenders);
        assert_eq!(figures.best_peer.as_deref(), Some("fast"));
        assert_eq!(figures.smallest_gap_peer.as_deref(), Some("gentle"));
        let engine = figures.engine().unwrap();
        assert_eq!(engine.total_to_best_peer, Some(0.6));
        assert_eq!(engine.gap_to_best_peer, Some(5.5 / 20.0));
        assert_eq!(engine.cpu_to_best_peer, Some(1.0));
        assert_eq!(engine.share_of_cold_limit, Some(400.0 / 600.0));
        assert_eq!(engine.share_of_populated_limit, None);
        assert_eq!(figures.prepared_total_to_prepared_peer, Some(0.5));
        assert_eq!(figures.contenders[5].total_ms, None);
        assert_eq!(figures.contenders[6].total_to_best_peer, None);
    }
}
