//! `idle`: a guest that spins and holds random memory, against the plain copy of the same bytes.

use serde::Serialize;

use super::error::BenchError;
use super::goals::{Bound, Goal};
use super::guest::{GUEST_OVERHEAD, Guest, GuestSpec};
use super::hosts::Hosts;
use super::mapping::{self, Mapping, Pages};
use super::stats::Samples;
use super::table::{Row, Unit};
use super::{limit, migrate, progress};

/// Memory beside the copied bytes that a run warms up: socket buffers, page tables, state.
const WARM_EXTRA: u64 = 64 << 20;
/// Memory of the guest that spins beside the plain copy.
const SPINNER: GuestSpec = GuestSpec {
    memory: 128 << 20,
    fill: 16 << 20,
};

/// Figures of the idle guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdleFigures {
    /// Bytes of random data in the guest, and bytes that the plain copy moves.
    pub random_bytes: u64,
    /// Connections of the migration and of the plain copy.
    pub streams: u8,
    /// The migration's total, from the request to the guest running at the destination.
    pub total_ms: Samples,
    /// From the start of the `vmm migrate` command to its end.
    pub command_ms: Samples,
    /// Guest stopped to guest running, as the engine measured it.
    pub downtime_ms: Samples,
    /// Largest gap that the guest saw between two passes of its loop, from before the migration to
    /// after it.
    pub guest_gap_ms: Samples,
    /// Bytes that left the source.
    pub wire_bytes: Samples,
    /// CPU seconds of the source process without its vCPUs.
    pub source_cpu_s: Samples,
    /// CPU seconds of the destination process without its vCPUs.
    pub destination_cpu_s: Samples,
    /// The plain copy into memory that is allocated as it is written, as a migration finds it.
    pub limit_cold_ms: Samples,
    /// The plain copy into memory that is there already.
    pub limit_populated_ms: Samples,
    /// Largest gap that the guest saw which spins beside the plain copy into cold memory: what the
    /// load alone does to a guest on this machine.
    pub limit_guest_gap_ms: Samples,
    /// Median of `limit_cold_ms` over median of `total_ms`: the share of the limit that is reached.
    pub share_of_limit: f64,
    /// Median of `limit_populated_ms` over median of `total_ms`.
    pub share_of_populated_limit: f64,
}

impl IdleFigures {
    /// Lines of the table for people.
    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            Row::samples("total", &self.total_ms, Unit::Milliseconds),
            Row::samples(
                "command, start to end",
                &self.command_ms,
                Unit::Milliseconds,
            ),
            Row::samples("downtime", &self.downtime_ms, Unit::Milliseconds),
            Row::samples(
                "gap that the guest saw",
                &self.guest_gap_ms,
                Unit::Milliseconds,
            ),
            Row::samples("on the wire", &self.wire_bytes, Unit::Bytes),
            Row::samples(
                "CPU of the source, vCPUs aside",
                &self.source_cpu_s,
                Unit::Seconds,
            ),
            Row::samples(
                "CPU of the destination",
                &self.destination_cpu_s,
                Unit::Seconds,
            ),
            Row::samples(
                "limit: plain copy, cold memory",
                &self.limit_cold_ms,
                Unit::Milliseconds,
            ),
            Row::samples(
                "limit, populated memory",
                &self.limit_populated_ms,
                Unit::Milliseconds,
            ),
            Row::samples(
                "gap of a guest beside it",
                &self.limit_guest_gap_ms,
                Unit::Milliseconds,
            ),
            Row::single("share of the limit", self.share_of_limit, Unit::Ratio),
            Row::single(
                "share of the populated limit",
                self.share_of_populated_limit,
                Unit::Ratio,
            ),
        ]
    }

    /// What these figures are to reach.
    pub(super) fn goals(&self) -> Vec<Goal> {
        vec![
            Goal::new(
                "share_of_limit",
                self.share_of_limit,
                Bound::AtLeast,
                0.6,
                Unit::Ratio,
            ),
            Goal::new(
                "guest_gap_ms",
                self.guest_gap_ms.median,
                Bound::AtMost,
                20.0,
                Unit::Milliseconds,
            ),
        ]
    }
}

/// Memory that a run needs at once.
pub(super) fn needed_memory(random_bytes: u64) -> u64 {
    2 * (random_bytes + GUEST_OVERHEAD + WARM_EXTRA) + SPINNER.memory
}

/// One turn of every contender.
struct Round {
    migration: MigrationRound,
    limit: LimitRound,
}

struct MigrationRound {
    total_ms: f64,
    command_ms: f64,
    downtime_ms: f64,
    guest_gap_ms: f64,
    wire_bytes: u64,
    source_cpu_s: f64,
    destination_cpu_s: f64,
}

struct LimitRound {
    cold_ms: f64,
    populated_ms: f64,
    guest_gap_ms: f64,
}

/// Measures `runs` rounds; the migration goes first in every other one.
pub(super) fn measure(
    hosts: &Hosts,
    runs: u32,
    random_bytes: u64,
    streams: u8,
) -> Result<Option<IdleFigures>, BenchError> {
    let mut rounds = Vec::new();
    for run in 0..runs {
        progress(format_args!("idle: round {} of {runs}", run + 1));
        rounds.push(if run % 2 == 0 {
            let limit = LimitRound::measure(hosts, random_bytes, streams)?;
            let migration = MigrationRound::measure(hosts, random_bytes, streams)?;
            Round { migration, limit }
        } else {
            let migration = MigrationRound::measure(hosts, random_bytes, streams)?;
            let limit = LimitRound::measure(hosts, random_bytes, streams)?;
            Round { migration, limit }
        });
    }
    Ok(figures(&rounds, random_bytes, streams))
}

impl MigrationRound {
    fn measure(hosts: &Hosts, random_bytes: u64, streams: u8) -> Result<Self, BenchError> {
        let spec = GuestSpec {
            memory: random_bytes + GUEST_OVERHEAD,
            fill: random_bytes,
        };
        let guest = Guest::start(hosts, "idle", spec)?;
        let mut moved = migrate::migrate(hosts, guest, streams, spec.memory + WARM_EXTRA)?;
        Ok(Self {
            total_ms: moved.report.total_ms,
            command_ms: moved.command_ms,
            downtime_ms: moved.report.downtime_ms.ok_or_else(|| BenchError::Output {
                command: "migrate".to_owned(),
                wanted: "the downtime",
            })?,
            guest_gap_ms: moved.guest.largest_gap_ms()?,
            wire_bytes: moved.report.wire_bytes,
            source_cpu_s: moved.source_cpu_s,
            destination_cpu_s: moved.destination_cpu_s,
        })
    }
}

impl LimitRound {
    fn measure(hosts: &Hosts, random_bytes: u64, streams: u8) -> Result<Self, BenchError> {
        let mut spinner = Guest::start(hosts, "spinner", SPINNER)?;
        let source = Mapping::new(random_bytes, Pages::Populated)?;
        source.fill_random()?;
        mapping::warm(random_bytes + WARM_EXTRA)?;
        spinner.forget_gaps()?;
        let cold = {
            let destination = Mapping::new(random_bytes, Pages::Cold)?;
            limit::copy(&source, &destination, streams)?
        };
        let guest_gap_ms = spinner.largest_gap_ms()?;
        mapping::warm(random_bytes + WARM_EXTRA)?;
        let destination = Mapping::new(random_bytes, Pages::Populated)?;
        let populated = limit::copy(&source, &destination, streams)?;
        spinner.process.check()?;
        Ok(Self {
            cold_ms: cold.as_secs_f64() * 1000.0,
            populated_ms: populated.as_secs_f64() * 1000.0,
            guest_gap_ms,
        })
    }
}

fn figures(rounds: &[Round], random_bytes: u64, streams: u8) -> Option<IdleFigures> {
    let total_ms = Samples::of(rounds, |round| round.migration.total_ms)?;
    let limit_cold_ms = Samples::of(rounds, |round| round.limit.cold_ms)?;
    let limit_populated_ms = Samples::of(rounds, |round| round.limit.populated_ms)?;
    Some(IdleFigures {
        random_bytes,
        streams,
        share_of_limit: limit_cold_ms.median / total_ms.median,
        share_of_populated_limit: limit_populated_ms.median / total_ms.median,
        total_ms,
        limit_cold_ms,
        limit_populated_ms,
        command_ms: Samples::of(rounds, |round| round.migration.command_ms)?,
        downtime_ms: Samples::of(rounds, |round| round.migration.downtime_ms)?,
        guest_gap_ms: Samples::of(rounds, |round| round.migration.guest_gap_ms)?,
        wire_bytes: Samples::of(rounds, |round| round.migration.wire_bytes as f64)?,
        source_cpu_s: Samples::of(rounds, |round| round.migration.source_cpu_s)?,
        destination_cpu_s: Samples::of(rounds, |round| round.migration.destination_cpu_s)?,
        limit_guest_gap_ms: Samples::of(rounds, |round| round.limit.guest_gap_ms)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_limit_is_that_of_the_medians() {
        let round = |total_ms, cold_ms| Round {
            migration: MigrationRound {
                total_ms,
                command_ms: total_ms + 10.0,
                downtime_ms: 5.0,
                guest_gap_ms: 25.0,
                wire_bytes: 1 << 30,
                source_cpu_s: 0.5,
                destination_cpu_s: 0.5,
            },
            limit: LimitRound {
                cold_ms,
                populated_ms: cold_ms / 2.0,
                guest_gap_ms: 8.0,
            },
        };
        let rounds = [
            round(1000.0, 700.0),
            round(900.0, 720.0),
            round(5000.0, 900.0),
        ];
        let figures = figures(&rounds, 1 << 30, 4).unwrap();
        assert_eq!(figures.share_of_limit, 0.72);
        assert_eq!(figures.share_of_populated_limit, 0.36);
        let reached: Vec<_> = figures.goals().iter().map(|goal| goal.reached).collect();
        assert_eq!(reached, [true, false]);
        assert_eq!(super::figures(&[], 1 << 30, 4), None);
    }
}
