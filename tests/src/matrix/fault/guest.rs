//! The guest ends by itself.

use super::Fault;
use crate::blackbox::Vms;
use crate::blackbox::holds;
use crate::matrix::scene::NAME;
use crate::matrix::{Cell, End, Phase, Receiver, Scene, Whereabouts};

const STANDS_STILL: &str = "the guest stands still and does nothing";

/// What both sides say of a guest that ended in one way.
struct Said {
    source: &'static [&'static str],
    destination: &'static [&'static str],
    /// How `vmm receive` ends when the guest ended there.
    there: Receiver,
}

const POWER_OFF: Said = Said {
    source: &["migration.failed", "guest.ended", "guest.powered-off"],
    destination: &[
        "migration.failed",
        "migration.peer-failed",
        "guest.ended",
        "guest.powered-off",
    ],
    there: Receiver::Ends(0, &[]),
};
const RESET: Said = Said {
    source: &["migration.failed", "guest.ended", "guest.reset"],
    destination: &[
        "migration.failed",
        "migration.peer-failed",
        "guest.ended",
        "guest.reset",
    ],
    there: Receiver::Ends(0, &[]),
};
const TRIPLE_FAULT: Said = Said {
    source: &[
        "migration.failed",
        "guest.ended",
        "guest.triple-fault",
        "guest.registers",
    ],
    destination: &[
        "migration.failed",
        "migration.peer-failed",
        "guest.ended",
        "guest.triple-fault",
        "guest.registers",
    ],
    there: Receiver::Ends(1, &["guest.triple-fault", "guest.registers"]),
};

/// Ways in which a guest ends.
pub fn all() -> Vec<Fault> {
    vec![
        Fault::new(
            "guest powers off",
            |scene| ends(scene, b'q'),
            |p| expect(p, &POWER_OFF),
        ),
        Fault::new(
            "guest resets",
            |scene| ends(scene, b'r'),
            |p| expect(p, &RESET),
        ),
        Fault::new(
            "guest triple faults",
            |scene| ends(scene, b't'),
            |p| expect(p, &TRIPLE_FAULT),
        ),
    ]
}

fn expect(phase: Phase, said: &Said) -> Cell {
    match phase {
        // It was moved, and then ended where it was.
        Phase::Finish => Cell::Run(End {
            code: 0,
            status: Some("completed"),
            chain: &[],
            receiver: said.there,
            guest: Whereabouts::Nowhere,
        }),
        phase if phase.runs_at_source() => Cell::fails(
            said.source,
            match phase {
                Phase::Negotiate => Receiver::Waits(said.destination),
                _ => Receiver::Ends(1, said.destination),
            },
            Whereabouts::Nowhere,
        ),
        _ => Cell::Not(STANDS_STILL),
    }
}

fn ends(scene: &mut Scene, key: u8) {
    if scene.phase == Phase::Finish {
        scene.pair.destination.press(NAME, key);
        holds("the guest ends at the destination", || {
            !scene.receiver.is_running()
        });
        scene.relay.go_on();
        scene.ended();
    } else {
        scene.pair.source.press(NAME, key);
        scene.ended();
        scene.relay.go_on();
        scene.source_ended();
    }
}
