//! A disk that moves by passes: all it holds, then what was written meanwhile, until little is left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::copy::{Copy, CopyError, Figures, Patience, Standing, Step, next};
use control::disk_move::{DiskMoveReport, OnNotConverging};

use super::{DiskMove, MoveError};
use crate::disks::Disk;
use crate::error::MachineError;

/// How long passes may bring nothing before the move is given up.
const IN_VAIN: Duration = Duration::from_secs(10);
/// Between two passes of which the first brought nothing.
const SHORTEST_REST: Duration = Duration::from_millis(20);
const LONGEST_REST: Duration = Duration::from_millis(500);
/// So much has to be copied for a rate that means something.
const MEASURED: u64 = 1 << 20;

/// Times and rates, as they were measured last.
struct Measured {
    rate: f64,
    flush: Duration,
    before: u64,
    /// Since when passes bring nothing, and how long is rested after the next such pass.
    in_vain: Option<Instant>,
    rest: Duration,
    pass_took: Duration,
}

impl Measured {
    fn pass(&mut self, pass: block::copy::Pass) {
        self.pass_took = pass.took;
        if pass.bytes >= MEASURED {
            self.rate = pass.bytes as f64 / pass.took.as_secs_f64().max(1e-6);
        }
    }

    fn brought(&mut self, something: bool) {
        if something {
            self.in_vain = None;
            self.rest = SHORTEST_REST;
        } else {
            self.in_vain.get_or_insert_with(Instant::now);
            self.rest = (self.rest * 2).min(LONGEST_REST);
        }
    }

    fn for_how_long_in_vain(&self) -> Duration {
        self.in_vain.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl DiskMove {
    /// Has `old`'s content copied to `next` until that is the disk.
    pub(super) fn by_passes(
        &self,
        old: &Disk,
        next: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let devices = self.machine.devices();
        let before = old.device();
        devices.track(&old.id)?;
        let changes = devices.disks.changes(&old.id);
        let changes = changes.ok_or_else(|| MachineError::NoDisk { id: old.id.clone() })?;
        let mut copy = Copy::new(before, next.target(), changes);
        report.allocated_bytes = copy.allocated()?;
        let moved = self.copy_and_go_over(&mut copy, next, to, report);
        match (moved, self.on_not_converging) {
            (Err(MoveError::NotConverging { .. }), OnNotConverging::Mirror) => {
                self.go_on_by_mirror(copy, next, to, report)
            }
            (moved, _) => moved,
        }
    }

    /// Passes until little is left, and then the end.
    fn copy_and_go_over(
        &self,
        copy: &mut Copy,
        next_disk: &Arc<Disk>,
        to: &str,
        report: &mut DiskMoveReport,
    ) -> Result<(), MoveError> {
        let steering = &*self.steering;
        steering.begin_pass(report.allocated_bytes, 0.0);
        let first = copy.all(self.content, steering)?;
        let mut measured = Measured {
            rate: first.bytes as f64 / first.took.as_secs_f64().max(1e-6),
            flush: copy.flush()?,
            before: report.allocated_bytes,
            in_vain: None,
            rest: SHORTEST_REST,
            pass_took: first.took,
        };
        let mut is_first = true;
        loop {
            let figures = Figures {
                left: copy.left(),
                before: measured.before,
                rate: measured.rate,
                fixed: measured.flush + self.record_cost,
            };
            let limit = steering.limit();
            // The first flush is of everything, and says nothing of the last.
            let too_slow = figures.fixed > limit && !is_first;
            measured.brought(!figures.is_in_vain() && !too_slow);
            let patience = Patience {
                limit,
                in_vain: measured.for_how_long_in_vain(),
                most: IN_VAIN,
            };
            match next(&figures, patience) {
                Step::End { most } if steering.begin_end() => {
                    let mut rest = || Ok(copy.rest(most)?.bytes);
                    match self.go_over(&mut rest, next_disk, to, report) {
                        Err(MoveError::Copy(CopyError::TooMuch { .. })) => report.retries += 1,
                        ended => return ended,
                    }
                    steering.give_back();
                    measured.brought(false);
                }
                Step::GiveUp => {
                    return Err(MoveError::NotConverging {
                        left: figures.left,
                        forecast: figures.forecast(),
                        limit,
                    });
                }
                Step::End { .. } | Step::Pass => {}
            }
            if measured.in_vain.is_some() || steering.standing() == Standing::Paused {
                steering.rest(measured.rest)?;
            }
            measured.before = copy.left();
            let dirtied = figures.left as f64 / measured.pass_took.as_secs_f64().max(1e-3);
            steering.begin_pass(measured.before, dirtied);
            measured.pass(copy.changed(steering)?);
            measured.flush = copy.flush()?;
            is_first = false;
        }
    }
}
