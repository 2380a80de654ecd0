//! What users ask for while a migration runs.

use super::Fault;
use crate::blackbox::{Vms, fails};
use crate::matrix::scene::NAME;
use crate::matrix::{Cell, End, Phase, Receiver, Scene, Whereabouts};

/// What the destination says of a migration that its source gave up for its user.
const CANCELLED: &[&str] = &[
    "migration.failed",
    "migration.peer-failed",
    "migration.cancelled",
];

/// Commands of users.
pub fn all() -> Vec<Fault> {
    vec![
        Fault::new("cancel", cancel, |phase| {
            if phase.is_before_commit() {
                Cell::Run(End {
                    code: 4,
                    status: Some("cancelled"),
                    chain: &["migration.failed", "migration.cancelled"],
                    receiver: told(phase, CANCELLED),
                    guest: Whereabouts::Source,
                })
            } else {
                Cell::completes(Whereabouts::Destination)
            }
        }),
        Fault::new("stop at source", stop_at_source, |phase| {
            if phase.is_before_commit() {
                Cell::fails(
                    &["migration.failed", "guest.ended", "vm.stopped"],
                    told(
                        phase,
                        &[
                            "migration.failed",
                            "migration.peer-failed",
                            "guest.ended",
                            "vm.stopped",
                        ],
                    ),
                    Whereabouts::Nowhere,
                )
            } else {
                Cell::completes(Whereabouts::Destination)
            }
        }),
        Fault::new("stop at destination", stop_at_destination, |phase| {
            let gone = Receiver::Ends(0, &[]);
            match phase {
                // It was moved, and then ended where it was.
                Phase::Finish => Cell::Run(End {
                    code: 0,
                    status: Some("completed"),
                    chain: &[],
                    receiver: gone,
                    guest: Whereabouts::Nowhere,
                }),
                _ => Cell::fails(CANCELLED, gone, Whereabouts::Source),
            }
        }),
        Fault::new("pause", pause, |phase| {
            Cell::completes(if phase.runs_at_source() {
                Whereabouts::PausedThere
            } else {
                Whereabouts::Destination
            })
        }),
        Fault::new("pause at destination", pause_there, |phase| {
            Cell::completes(match phase {
                Phase::Finish => Whereabouts::PausedThere,
                _ => Whereabouts::Destination,
            })
        }),
        Fault::new("second migration", second_migration, |_| {
            Cell::completes(Whereabouts::Destination)
        }),
        Fault::new("name is taken", name_is_taken, |_| {
            Cell::completes(Whereabouts::Destination)
        }),
    ]
}

/// What becomes of a receiver that its source tells why it keeps the guest.
fn told(phase: Phase, why: &'static [&'static str]) -> Receiver {
    match phase {
        Phase::Negotiate => Receiver::Waits(why),
        _ => Receiver::Ends(1, why),
    }
}

fn cancel(scene: &mut Scene) {
    let run = scene.pair.source.vmm(["migrate", NAME, "--cancel"]);
    if scene.phase.is_before_commit() {
        let _ = run.success();
        scene.ended();
        scene.relay.go_on();
    } else {
        fails(run, 1, &["commit"]);
        scene.go_on();
        scene.ended();
    }
}

fn stop_at_source(scene: &mut Scene) {
    let stop = scene.pair.source.spawn(["stop", NAME, "--force"]);
    if scene.phase.is_before_commit() {
        scene.ended();
        scene.relay.go_on();
    } else {
        // It waits for the migration, which ends it here in its own way.
        scene.go_on();
        scene.ended();
    }
    let stop = stop.finish(crate::blackbox::wait::PATIENCE);
    let stop = stop.unwrap_or_else(|e| panic!("{e:#}"));
    if scene.phase.is_before_commit() {
        let _ = stop.success();
    } else {
        fails(stop, 1, &[""]);
    }
}

fn stop_at_destination(scene: &mut Scene) {
    let _ = scene
        .pair
        .destination
        .vmm(["stop", NAME, "--force"])
        .success();
    scene.relay.go_on();
    scene.ended();
}

fn pause(scene: &mut Scene) {
    let run = scene.pair.source.vmm(["pause", NAME]);
    if scene.phase.runs_at_source() {
        let _ = run.success();
        assert_eq!(scene.pair.source.status(NAME)["state"], "paused");
    } else {
        fails(run, 1, &["handed over"]);
    }
    scene.go_on();
    scene.ended();
}

fn pause_there(scene: &mut Scene) {
    let run = scene.pair.destination.vmm(["pause", NAME]);
    if scene.phase == Phase::Finish {
        let _ = run.success();
        assert_eq!(scene.pair.destination.status(NAME)["state"], "paused");
    } else {
        fails(run, 1, &["has not come in yet"]);
    }
    scene.go_on();
    scene.ended();
}

fn second_migration(scene: &mut Scene) {
    let address = scene.relay.address();
    let run = scene.pair.source.vmm(["migrate", NAME, "--to", &address]);
    fails(run, 1, &["already"]);
    scene.go_on();
    scene.ended();
}

fn name_is_taken(scene: &mut Scene) {
    let listen = ["receive", "--name", NAME, "--listen", "127.0.0.1:0"];
    fails(scene.pair.destination.vmm(listen), 1, &["vm.name-in-use"]);
    let run = ["run", NAME, "--detach"];
    fails(scene.pair.destination.vmm(run), 1, &["vm.name-in-use"]);
    scene.go_on();
    scene.ended();
}
