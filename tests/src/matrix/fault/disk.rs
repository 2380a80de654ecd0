//! The disk that both hosts share fails.

use super::Fault;
use crate::matrix::{Cell, Phase, Scene, Whereabouts};

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
            waits: Phase::runs_at_source,
            ..Fault::new("disk hangs", hangs, hanging)
        },
        Fault {
            waits: Phase::runs_at_source,
            ..Fault::new("disk's writes hang", writes_hang, |phase| match phase {
                phase if phase.runs_at_source() => Cell::stays(HANGS_HERE[0], HANGS_HERE[1]),
                _ => Cell::completes(Whereabouts::Destination),
            })
        },
    ]
}

const HANGS_HERE: [&[&str]; 2] = [
    &["migration.failed", "migration.vm", "disk.hangs"],
    &["migration.peer-failed", "migration.vm", "disk.hangs"],
];

fn hanging(phase: Phase) -> Cell {
    match phase {
        // The destination's machine begins at rest, too.
        Phase::Negotiate => Cell::refused(HANGS_HERE[1], HANGS_HERE[0]),
        phase if phase.runs_at_source() => Cell::stays(HANGS_HERE[0], HANGS_HERE[1]),
        // Nothing is asked of the disk until the guest is there, and then it is the guest who waits.
        _ => Cell::completes(Whereabouts::Destination),
    }
}

fn fails(phase: Phase, said: &Said) -> Cell {
    match phase {
        Phase::Negotiate => Cell::refused(said.opening[0], said.opening[1]),
        Phase::Prepare | Phase::Precopy => Cell::stays(said.flushing[0], said.flushing[1]),
        // The guest stands still with its disk flushed; where it runs then, it is told.
        _ => Cell::completes(Whereabouts::Destination),
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
    run_on(scene);
}

fn writes_hang(scene: &mut Scene) {
    scene.order_disk_faults(&[("write", "hang")]);
    if scene.phase.runs_at_source() {
        scene.console.waits_for_disk();
    }
    run_on(scene);
}

fn run_on(scene: &mut Scene) {
    scene.go_on();
    scene.ended();
    scene.order_disk_faults(&[]);
}
