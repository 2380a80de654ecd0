//! One side is killed before the commit: the other one is as if nothing had been tried.

use tests::blackbox::migration::BEFORE_COMMIT;
use tests::blackbox::relay::{Fate, Relay, Toward, Trap};
use tests::blackbox::wire::kind;
use tests::blackbox::{Guest, Migration, Pair, Vms, gate, holds, images, kill};

/// Where the link is held so that both sides are in the phase; precopy needs only a slow link.
fn held_in(phase: &str) -> Option<Trap> {
    let trap = |toward, kind| {
        Some(Trap {
            toward,
            kind,
            fate: Fate::Stall,
        })
    };
    match phase {
        "negotiate" => trap(Toward::Source, kind::NEGOTIATED),
        "prepare" => trap(Toward::Source, kind::PREPARED),
        "stop-and-copy" => trap(Toward::Destination, kind::LAST_PASS),
        "ready" => trap(Toward::Source, kind::READY),
        _ => None,
    }
}

/// Starts a migration and returns when it is in `phase` and stays there.
fn held(pair: &Pair, phase: &str, address: &str) -> (Relay, Migration) {
    let relay = Relay::new(address, held_in(phase));
    let limit: &[&str] = if phase == "precopy" {
        &["--bandwidth", "4MiB/s"]
    } else {
        &[]
    };
    let mut migration = Migration::start(&pair.source, "guest", &relay.address(), limit);
    migration.wait_phase(phase);
    if phase == "precopy" {
        migration.wait_progress();
    } else {
        holds("the link is held", || relay.is_sprung());
    }
    (relay, migration)
}

fn phases() -> impl Iterator<Item = &'static str> {
    BEFORE_COMMIT.into_iter().chain(["ready"])
}

#[test]
fn guest_goes_on_at_the_source_when_the_destination_is_killed() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let files = Pair::new();
    let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
    let mut console = pair.source.run("guest", &Guest::slow_to_move().disk(&disk));
    for phase in phases() {
        println!("{phase}");
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let (relay, migration) = held(&pair, phase, &address);
        kill(pair.destination.pid("guest"));
        if relay.is_sprung() {
            // What is held must not arrive any more: the source would enter another phase.
            relay.cut();
        }
        let ended = migration.finish();
        let why = ended.ended(1, "failed");
        // The source waits for nothing in stop-and-copy, so it is in the next phase by then.
        let named = if phase == "stop-and-copy" {
            "ready"
        } else {
            phase
        };
        assert!(why.contains(named) && why.contains("connection"), "{why}");
        assert_eq!(ended.report["status"], "failed");
        assert_eq!(pair.source.status("guest")["state"], "running");
        console.wait_tick();
        console.verifies_ledger();
        pair.destination.is_swept();
    }
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

#[test]
fn destination_cleans_up_when_the_source_is_killed() {
    let Some(_gate) = gate() else { return };
    for phase in phases() {
        println!("{phase}");
        let pair = Pair::new();
        let files = Pair::new();
        let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
        let guest = Guest::slow_to_move().disk(&disk);
        pair.source.run("guest", &guest);
        let mut receiver = pair.destination.spawn([
            "receive",
            "--name",
            "guest",
            "--listen",
            "127.0.0.1:0",
            "--json",
        ]);
        pair.destination.wait_state("guest", "incoming");
        let status = pair.destination.status("guest");
        let address = status["listen"].as_str().expect("address").to_owned();
        let (relay, migration) = held(&pair, phase, &address);
        kill(pair.source.pid("guest"));
        relay.go_on();
        let ended = migration.finish();
        assert_eq!(ended.code, 1, "{:#} {}", ended.report, ended.err);
        holds("the receiver ends", || !receiver.is_running());
        let received = receiver
            .finish(tests::blackbox::wait::PATIENCE)
            .unwrap_or_else(|e| panic!("{e:#}"))
            .expect_code(1);
        assert!(received.stderr.contains("connection"), "{received}");
        pair.destination.is_clean();
        pair.source.is_swept();
        // The disk is nobody's.
        let mut console = pair.source.run("guest", &guest);
        console.verifies_ledger();
    }
}

#[test]
fn guest_goes_on_when_the_link_is_cut_or_stands_still() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    for (what, word) in [("cut", "connection"), ("stalled", "no")] {
        println!("{what}");
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let relay = Relay::new(&address, None);
        let slow = ["--bandwidth", "4MiB/s"];
        let mut migration = Migration::start(&pair.source, "guest", &relay.address(), &slow);
        migration.wait_progress();
        if what == "cut" {
            relay.cut();
        } else {
            relay.stall();
        }
        let why = migration.finish().ended(1, "failed");
        assert!(why.contains("precopy") && why.contains(word), "{why}");
        assert_eq!(pair.source.status("guest")["state"], "running");
        console.wait_tick();
        console.verifies_ledger();
        drop(relay);
        pair.destination.is_clean();
    }
}

#[test]
fn killed_client_does_not_harm_guest_or_migration() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let slow = ["--bandwidth", "16MiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &slow);
    migration.wait_progress();
    drop(migration);
    pair.destination.wait_state("guest", "running");
    pair.source.is_clean();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}
