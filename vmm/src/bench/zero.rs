//! `zero`: a large guest that touched little of its memory. What it never touched must cost next to
//! nothing, on the wire and at the destination.

use migration::progress::Report;
use serde::Serialize;

use super::error::BenchError;
use super::goals::{Bound, Goal};
use super::guest::{Guest, GuestSpec};
use super::hosts::Hosts;
use super::stats::Samples;
use super::table::{Row, Unit};
use super::{migrate, progress};

/// The guest: its memory, and the part of it that it fills.
const GUEST: GuestSpec = GuestSpec {
    memory: 4 << 30,
    fill: 64 << 20,
};
/// Memory that a run warms up: what the guest fills, its overhead and socket buffers.
const WARM: u64 = 256 << 20;
/// What the guest, which runs on, may itself touch between the readings at the source and at the
/// destination.
const TOUCHED_MEANWHILE: f64 = (256 << 10) as f64;
/// How pages that carry data are called in a report.
const WITH_DATA: &str = "raw";

/// Figures of the mostly untouched guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ZeroFigures {
    /// Memory of the guest in bytes.
    pub guest_bytes: u64,
    /// Bytes of it that the guest filled with random data.
    pub filled_bytes: u64,
    /// Connections of the migration.
    pub streams: u8,
    /// The migration's total, from the request to the guest running at the destination.
    pub total_ms: Samples,
    /// Bytes that left the source.
    pub wire_bytes: Samples,
    /// Bytes that left the source beside the contents of pages that hold data: what the untouched
    /// part cost, and all headers.
    pub untouched_wire_bytes: Samples,
    /// Guest memory that the source had allocated before the migration.
    pub source_allocated_bytes: Samples,
    /// Guest memory that the destination had allocated after it.
    pub destination_allocated_bytes: Samples,
    /// How much more the destination had allocated than the source.
    pub extra_allocated_bytes: Samples,
}

impl ZeroFigures {
    /// Lines of the table for people.
    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            Row::samples("total", &self.total_ms, Unit::Milliseconds),
            Row::samples("on the wire", &self.wire_bytes, Unit::Bytes),
            Row::samples(
                "  for the untouched part",
                &self.untouched_wire_bytes,
                Unit::Bytes,
            ),
            Row::samples(
                "allocated at the source",
                &self.source_allocated_bytes,
                Unit::Bytes,
            ),
            Row::samples(
                "allocated at the destination",
                &self.destination_allocated_bytes,
                Unit::Bytes,
            ),
            Row::samples(
                "  more than at the source",
                &self.extra_allocated_bytes,
                Unit::Bytes,
            ),
        ]
    }

    /// What these figures are to reach.
    pub(super) fn goals(&self) -> Vec<Goal> {
        vec![
            Goal::new(
                "untouched_wire_bytes",
                self.untouched_wire_bytes.median,
                Bound::AtMost,
                f64::from(1 << 20),
                Unit::Bytes,
            ),
            Goal::new(
                "extra_allocated_bytes",
                self.extra_allocated_bytes.median,
                Bound::AtMost,
                TOUCHED_MEANWHILE,
                Unit::Bytes,
            ),
        ]
    }
}

/// Memory that a run needs at once.
pub(super) fn needed_memory() -> u64 {
    2 * WARM
}

struct Round {
    total_ms: f64,
    wire_bytes: u64,
    data_bytes: u64,
    source_allocated: u64,
    destination_allocated: u64,
}

/// Measures `runs` migrations.
pub(super) fn measure(
    hosts: &Hosts,
    runs: u32,
    streams: u8,
) -> Result<Option<ZeroFigures>, BenchError> {
    let mut rounds = Vec::new();
    for run in 0..runs {
        progress(format_args!("zero: round {} of {runs}", run + 1));
        let guest = Guest::start(hosts, "zero", GUEST)?;
        let mut moved = migrate::migrate(hosts, guest, streams, WARM)?;
        // Its ticks tell that it is the same guest, unharmed.
        moved.guest.largest_gap_ms()?;
        rounds.push(Round {
            total_ms: moved.report.total_ms,
            wire_bytes: moved.report.wire_bytes,
            data_bytes: data_bytes(&moved.report),
            source_allocated: moved.source_memfd_bytes,
            destination_allocated: moved.destination_memfd_bytes,
        });
    }
    Ok(figures(&rounds, streams))
}

fn data_bytes(report: &Report) -> u64 {
    report
        .encodings
        .get(WITH_DATA)
        .map_or(0, |count| count.bytes)
}

fn figures(rounds: &[Round], streams: u8) -> Option<ZeroFigures> {
    Some(ZeroFigures {
        guest_bytes: GUEST.memory,
        filled_bytes: GUEST.fill,
        streams,
        total_ms: Samples::of(rounds, |round| round.total_ms)?,
        wire_bytes: Samples::of(rounds, |round| round.wire_bytes as f64)?,
        untouched_wire_bytes: Samples::of(rounds, |round| {
            round.wire_bytes.saturating_sub(round.data_bytes) as f64
        })?,
        source_allocated_bytes: Samples::of(rounds, |round| round.source_allocated as f64)?,
        destination_allocated_bytes: Samples::of(rounds, |round| {
            round.destination_allocated as f64
        })?,
        extra_allocated_bytes: Samples::of(rounds, |round| {
            round
                .destination_allocated
                .saturating_sub(round.source_allocated) as f64
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_page_contents_counts_for_the_untouched_part() {
        let rounds = [Round {
            total_ms: 80.0,
            wire_bytes: (64 << 20) + 5000,
            data_bytes: 64 << 20,
            source_allocated: 66 << 20,
            destination_allocated: 65 << 20,
        }];
        let figures = figures(&rounds, 2).unwrap();
        assert_eq!(figures.untouched_wire_bytes.median, 5000.0);
        assert_eq!(figures.extra_allocated_bytes.median, 0.0);
        assert!(figures.goals().iter().all(|goal| goal.reached));
    }
}
