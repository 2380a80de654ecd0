//! The link breaks around the commit: nobody guesses, and what is not known is found out as soon as the
//! other side can be reached. More of it is in `matrix.rs`: the link that is cut, or stalls, in `commit`
//! (the guest never ran at the destination) and in `finish` (it runs there), and a side that is killed.

use tests::Host;
use tests::blackbox::relay::{Fate, Relay, Toward, Trap};
use tests::blackbox::wait::eventually;
use tests::blackbox::wire::kind;
use tests::blackbox::{Ended, Guest, Migration, Pair, Vms, fails, guest_lock, holds};

/// Moves the guest over a link that breaks as `trap` says and stays broken.
fn breaks(pair: &Pair, trap: Trap) -> (Relay, Ended) {
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let relay = Relay::new(&address, Some(trap));
    // What is lost before the guest is stopped would be made anew.
    let options = ["--reconnect-for", "0s"];
    let migration = Migration::start(&pair.source, "guest", &relay.address(), &options);
    (relay, migration.finish())
}

#[test]
fn short_break_around_the_commit_is_resolved_by_itself() {
    let Some(_lock) = guest_lock() else { return };
    let cases = [
        (
            "answer is lost",
            Toward::Source,
            kind::COMMITTED,
            Fate::Cut,
            true,
        ),
        (
            "commit is lost",
            Toward::Destination,
            kind::COMMIT,
            Fate::Cut,
            false,
        ),
    ];
    for (what, toward, kind, fate, ran) in cases {
        println!("{what}");
        let pair = Pair::new();
        let mut console = pair.source.run("guest", &Guest::dirtying());
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let relay = Relay::new(&address, Some(Trap { toward, kind, fate }));
        let migration = Migration::start(&pair.source, "guest", &relay.address(), &[]);
        holds("the link breaks", || relay.is_sprung());
        relay.go_on();
        let ended = migration.finish();
        if ran {
            ended.completed();
            pair.source.is_clean();
            console.moves_to(&pair.destination, "guest");
        } else {
            let _ = ended.ended(1, "failed");
            assert_eq!(pair.source.status("guest")["state"], "running");
            pair.destination.waits_on("guest");
        }
        console.wait_tick();
        console.verifies_ledger();
    }
}

/// The destination has a part of the commit, and the source cannot know how much.
#[test]
fn cut_in_the_middle_of_the_commit_heals_by_itself() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let trap = Trap {
        toward: Toward::Destination,
        kind: kind::COMMIT,
        fate: Fate::CutWithin,
    };
    let relay = Relay::new(&address, Some(trap));
    let ended = Migration::start(&pair.source, "guest", &relay.address(), &[]).finish();
    let _ = ended.ended(3, "failed");
    assert_eq!(pair.source.status("guest")["state"], "handover-unknown");
    // The destination has given up all the same, and holds nothing of the guest.
    let why = pair.destination.waits_on("guest");
    assert_eq!(why["phase"], "ready", "{why:#}");
    let told = |host: &Host| {
        let job = host.jobs("guest").remove(0);
        (job["state"].clone(), job["result"]["outcome"].clone())
    };
    assert_eq!(
        told(&pair.destination),
        ("concluded".into(), "failed".into())
    );
    assert_eq!(told(&pair.source), ("resolving".into(), "unknown".into()));
    let job = pair.source.jobs("guest").remove(0);
    let id = job["id"].as_str().expect("identifier");
    let cancel = ["jobs", "guest", id, "--cancel"];
    fails(pair.source.vmm(cancel), 1, &["too late"]);
    relay.go_on();
    // Nobody asks for it.
    pair.source.wait_state("guest", "running");
    let status = pair.source.status("guest");
    assert_eq!(status["migration"]["resolution"], "never-ran", "{status:#}");
    assert_eq!(told(&pair.source), ("concluded".into(), "failed".into()));
    console.wait_tick();
    console.verifies_ledger();
    // Whoever asks now is told what became of it.
    let run = pair.source.vmm(["migrate", "guest", "--resolve"]).success();
    assert!(run.stdout.contains("guest is running"), "{run}");
    // The receiver takes it all the same.
    let moved = Migration::start(&pair.source, "guest", &address, &[]).finish();
    moved.completed();
    pair.source.is_clean();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

/// Whoever asks while the source does so by itself is answered, too.
#[test]
fn resolve_is_answered_while_the_source_asks_by_itself() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let trap = Trap {
        toward: Toward::Source,
        kind: kind::COMMITTED,
        fate: Fate::Cut,
    };
    let relay = Relay::new(&address, Some(trap));
    let ended = Migration::start(&pair.source, "guest", &relay.address(), &[]).finish();
    let _ = ended.ended(3, "failed");
    let resolve = ["migrate", "guest", "--resolve"];
    for _ in 0..3 {
        let _ = pair.source.vmm(resolve).expect_code(3);
    }
    relay.go_on();
    let run = pair.source.vmm(resolve);
    // It may have ended in between, after it was answered itself.
    assert!(matches!(run.code(), 0 | 1), "{run}");
    pair.source.is_clean();
    console.moves_to(&pair.destination, "guest");
    console.wait_tick();
    console.verifies_ledger();
}

#[test]
fn guest_runs_on_one_side_when_the_link_breaks_with_the_commit() {
    let Some(_lock) = guest_lock() else { return };
    let trap = Trap {
        toward: Toward::Destination,
        kind: kind::COMMIT,
        fate: Fate::PassAndCut,
    };
    for _ in 0..4 {
        let pair = Pair::new();
        let mut console = pair.source.run("guest", &Guest::dirtying());
        let address = pair.destination.receive("guest", "127.0.0.1:0");
        let relay = Relay::new(&address, Some(trap));
        let migration = Migration::start(&pair.source, "guest", &relay.address(), &[]);
        holds("the link breaks", || relay.is_sprung());
        // The destination may read the commit before or after it sees that the link is gone.
        let came = eventually("the destination decides", || {
            let status = pair.destination.status("guest");
            match status["failed_migrations"].as_u64() {
                Some(_) => Some(false),
                None => (status["state"] == "running").then_some(true),
            }
        });
        println!("the commit came in time: {came}");
        relay.go_on();
        let ended = migration.finish();
        if came {
            ended.completed();
            pair.source.is_clean();
            console.moves_to(&pair.destination, "guest");
        } else {
            let _ = ended.ended(1, "failed");
            assert_eq!(pair.source.status("guest")["state"], "running");
            assert_eq!(pair.destination.status("guest")["state"], "incoming");
        }
        console.wait_tick();
        console.verifies_ledger();
    }
}

#[test]
fn link_that_breaks_before_the_commit_leaves_nothing_to_resolve() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let cuts = [
        (Toward::Source, kind::WELCOME),
        (Toward::Destination, kind::NEGOTIATE),
        (Toward::Source, kind::NEGOTIATED),
        (Toward::Destination, kind::PREPARE),
        (Toward::Source, kind::PREPARED),
        (Toward::Destination, kind::EXTENTS),
        (Toward::Destination, kind::LAST_PASS),
        (Toward::Destination, kind::STATE),
        (Toward::Source, kind::READY),
    ];
    for (toward, kind) in cuts {
        for fate in [Fate::Cut, Fate::PassAndCut] {
            if (kind, fate) == (kind::READY, Fate::PassAndCut) {
                // The commit is lost then, but the source cannot know.
                continue;
            }
            println!("{fate:?} at frame {kind}");
            let (relay, ended) = breaks(&pair, Trap { toward, kind, fate });
            assert!(relay.is_sprung(), "no frame {kind}: {:#}", ended.report);
            let _ = ended.ended(1, "failed");
            assert_eq!(ended.report["status"], "failed", "{:#}", ended.report);
            assert_eq!(pair.source.status("guest")["state"], "running");
            drop(relay);
            pair.destination.waits_no_more("guest");
        }
    }
    console.wait_tick();
    console.verifies_ledger();
}
