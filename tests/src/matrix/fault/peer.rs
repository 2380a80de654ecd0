//! A side is killed, or the link between both misbehaves.

use super::Fault;
use crate::blackbox::{Vms, kill};
use crate::matrix::scene::{NAME, RECONNECT, SetUp};
use crate::matrix::{Cell, Phase, Receiver, Scene, Whereabouts};

/// How each side sees that the other's connection is gone.
const LOST: &[&str] = &["migration.failed", "migration.peer-lost", "link.closed"];
/// How each side sees that the other says nothing.
const SILENT: &[&str] = &[
    "migration.failed",
    "migration.peer-silent|migration.no-answer",
];
/// How the source tells that it does not know who runs the guest.
const NO_ANSWER: &[&str] = &[
    "migration.handover-unknown",
    "migration.peer-lost",
    "link.closed",
];
const NOTHING_HEARD: &[&str] = &[
    "migration.handover-unknown",
    "migration.peer-silent|migration.no-answer",
];
/// So slow that a move takes a while, so fast that it ends.
const SLOW: u64 = 2 << 20;

/// Kills, cuts, stalls and slowness.
pub fn all() -> Vec<Fault> {
    vec![
        Fault::new("kill -9 source", kill_source, |phase| {
            if phase.is_before_commit() {
                Cell::source_killed(left(phase, LOST))
            } else {
                // The commit is on its way: it counts, whoever sent it.
                Cell::source_killed_late(Receiver::Holds, Whereabouts::Destination)
            }
        }),
        Fault {
            waits: |phase| !phase.is_before_commit(),
            ..Fault::new(
                "kill -9 destination",
                kill_destination,
                |phase| match phase {
                    Phase::Commit => {
                        Cell::unknown(NO_ANSWER, Receiver::Killed, Whereabouts::UnknownNever)
                    }
                    Phase::Finish => Cell::unknown(
                        NO_ANSWER,
                        Receiver::Killed,
                        Whereabouts::UnknownRanAndKilled,
                    ),
                    _ => Cell::fails(LOST, Receiver::Killed, Whereabouts::Source),
                },
            )
        },
        Fault {
            waits: |phase| !phase.is_before_commit(),
            ..Fault::new("link cut", cut, |phase| match phase {
                Phase::Commit => {
                    Cell::unknown(NO_ANSWER, left(phase, LOST), Whereabouts::UnknownNever)
                }
                Phase::Finish => Cell::unknown(NO_ANSWER, Receiver::Holds, Whereabouts::UnknownRan),
                _ => Cell::fails(LOST, left(phase, LOST), Whereabouts::Source),
            })
        },
        Fault {
            waits: |_| true,
            ..Fault::new("link stalls", stall, |phase| match phase {
                Phase::Commit => Cell::unknown(
                    NOTHING_HEARD,
                    left(phase, SILENT),
                    Whereabouts::UnknownNever,
                ),
                Phase::Finish => {
                    Cell::unknown(NOTHING_HEARD, Receiver::Holds, Whereabouts::UnknownRan)
                }
                _ => Cell::fails(SILENT, left(phase, SILENT), Whereabouts::Source),
            })
        },
        Fault::new("link cut, soon back", cut_briefly, |phase| match phase {
            // Asked who has it, the destination can tell: the loss is no part of the success.
            Phase::Finish => Cell::completes(Whereabouts::Destination),
            _ => Cell::fails(LOST, left(phase, LOST), Whereabouts::Source),
        }),
        Fault {
            set_up: |_, _| SetUp {
                migrate: [RECONNECT, "30s"].map(str::to_owned).to_vec(),
                ..SetUp::default()
            },
            ..Fault::new("link cut, made anew", cut_and_go_on, |phase| match phase {
                Phase::Precopy | Phase::Finish => Cell::completes(Whereabouts::Destination),
                _ => Cell::fails(LOST, left(phase, LOST), Whereabouts::Source),
            })
        },
        Fault {
            set_up: |_, _| SetUp {
                migrate: ["--downtime-limit", "30s"].map(str::to_owned).to_vec(),
                ..SetUp::default()
            },
            ..Fault::new("slow link", slow, |_| {
                Cell::completes(Whereabouts::Destination)
            })
        },
    ]
}

/// What becomes of a receiver that is left alone.
fn left(phase: Phase, why: &'static [&'static str]) -> Receiver {
    if phase.is_waited_through() {
        Receiver::Waits(why)
    } else {
        Receiver::Ends(1, why)
    }
}

fn kill_source(scene: &mut Scene) {
    kill(scene.pair.source.pid(NAME));
    scene.source_killed = true;
    // What it had sent arrives all the same, in the worst order.
    if scene.relay.is_sprung() {
        scene.relay.go_on_pages_first();
    }
    scene.ended();
}

fn kill_destination(scene: &mut Scene) {
    kill(scene.pair.destination.pid(NAME));
    if scene.relay.is_sprung() {
        // What is held must not arrive any more: the source would enter another phase.
        scene.relay.cut();
    }
    scene.ended();
}

fn cut(scene: &mut Scene) {
    scene.relay.cut();
    scene.ended();
}

fn cut_briefly(scene: &mut Scene) {
    scene.relay.cut();
    scene.relay.go_on();
    scene.ended();
}

fn cut_and_go_on(scene: &mut Scene) {
    scene.relay.cut();
    scene.go_on();
    scene.ended();
}

fn stall(scene: &mut Scene) {
    scene.relay.stall();
    scene.ended();
}

fn slow(scene: &mut Scene) {
    scene.relay.pace(SLOW);
    scene.go_on();
    scene.ended();
}
