//! The disk that both hosts share fails.

use super::Fault;
use crate::matrix::{Cell, Phase, Scene};

const AT_REST: &str = "the guest stands still and its disk is flushed: nothing is asked of it";

/// What both sides say of it: the source first, then the destination.
struct Said {
    /// In `prepare`, where the destination opens it.
    opening: [&'static [&'static str]; 2],
    /// In `precopy`, where the source flushes it.
    flushing: [&'static [&'static str]; 2],
}

const NO_SPACE: Said = Said {
    opening: [
        &[
            "migration.peer-failed",
            "migration.vm",
            "disk.open",
            "os.no-space",
        ],
        &[
            "migration.failed",
            "migration.vm",
            "disk.open",
            "os.no-space",
        ],
    ],
    flushing: [
        &[
            "migration.failed",
            "migration.vm",
            "disk.flush",
            "os.no-space",
        ],
        &[
            "migration.peer-failed",
            "migration.vm",
            "disk.flush",
            "os.no-space",
        ],
    ],
};
const IO_ERROR: Said = Said {
    opening: [
        &[
            "migration.peer-failed",
            "migration.vm",
            "disk.open",
            "os.input-output",
        ],
        &[
            "migration.failed",
            "migration.vm",
            "disk.open",
            "os.input-output",
        ],
    ],
    flushing: [
        &[
            "migration.failed",
            "migration.vm",
            "disk.flush",
            "os.input-output",
        ],
        &[
            "migration.peer-failed",
            "migration.vm",
            "disk.flush",
            "os.input-output",
        ],
    ],
};

/// Failures of a disk.
pub fn all() -> Vec<Fault> {
    vec![
        Fault::new("disk: no space", no_space, |phase| fails(phase, &NO_SPACE)),
        Fault::new("disk: i/o error", io_error, |phase| fails(phase, &IO_ERROR)),
        Fault {
            waits: |_| true,
            ..Fault::new("disk hangs", hangs, |phase| match phase {
                // The destination's machine begins at rest, too.
                Phase::Negotiate => Cell::stays(
                    &["migration.peer-failed", "migration.vm", "disk.hangs"],
                    &["migration.failed", "migration.vm", "disk.hangs"],
                ),
                phase if phase.runs_at_source() => Cell::stays(
                    &["migration.failed", "migration.vm", "disk.hangs"],
                    &["migration.peer-failed", "migration.vm", "disk.hangs"],
                ),
                _ => Cell::Not(AT_REST),
            })
        },
    ]
}

fn fails(phase: Phase, said: &Said) -> Cell {
    match phase {
        Phase::Negotiate => Cell::stays(said.opening[0], said.opening[1]),
        Phase::Prepare | Phase::Precopy => Cell::stays(said.flushing[0], said.flushing[1]),
        _ => Cell::Not(AT_REST),
    }
}

fn no_space(scene: &mut Scene) {
    all_fail(scene, "ENOSPC");
}

fn io_error(scene: &mut Scene) {
    all_fail(scene, "EIO");
}

fn all_fail(scene: &mut Scene, effect: &str) {
    let faults = ["open", "write", "flush"].map(|operation| (operation, effect));
    scene.order_disk_faults(&faults);
    scene.go_on();
    scene.ended();
    scene.order_disk_faults(&[]);
    scene.console.knows_of_disk_faults();
}

fn hangs(scene: &mut Scene) {
    scene.order_disk_faults(&[("flush", "hang")]);
    scene.go_on();
    scene.ended();
    scene.order_disk_faults(&[]);
}
