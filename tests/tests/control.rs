//! A migration is watched, steered and given up while it runs; the guest is never the one to suffer.
//! What is asked for in each phase is in `matrix.rs`.

use tests::blackbox::{Guest, Migration, Pair, Vms, fails, gate};

/// Slow enough that a test has all the time that it needs.
const SLOW: [&str; 2] = ["--bandwidth", "4MiB/s"];
const FAST: &str = "bandwidth=10GiB/s";

#[test]
fn cancel_needs_a_migration() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    pair.source.run("guest", &Guest::idle());
    for args in [["--cancel", ""], ["--set", FAST], ["--resolve", ""]] {
        let args = args.iter().filter(|arg| !arg.is_empty());
        let run = pair.source.vmm(["migrate", "guest"].iter().chain(args));
        assert_eq!(run.code(), 1, "{run}");
    }
    assert_eq!(pair.source.status("guest")["state"], "running");
}

#[test]
fn interrupted_client_cancels_the_migration_only() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut migration = Migration::start(&pair.source, "guest", &address, &SLOW);
    migration.wait_progress();
    migration.interrupt();
    let ended = migration.finish();
    let _ = ended.ended(4, "cancelled");
    assert_eq!(pair.source.status("guest")["state"], "running");
    console.wait_tick();
    console.verifies_ledger();
    pair.destination.is_clean();
}

#[test]
fn another_guest_does_not_get_in_between() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut first = Migration::start(&pair.source, "guest", &address, &SLOW);
    first.wait_progress();
    pair.source.run("other", &Guest::idle());
    let run = pair.source.vmm(["migrate", "other", "--to", &address]);
    fails(run, 1, &["another migration"]);
    assert_eq!(pair.source.status("other")["state"], "running");
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--set", FAST])
        .success();
    first.finish().completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

#[test]
fn limits_change_while_it_runs() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    // At this rate it would outlive the test.
    let slow = ["--bandwidth", "64KiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &slow);
    migration.wait_progress();
    let set = [
        "migrate",
        "guest",
        "--set",
        "bandwidth=1GiB/s,downtime-limit=250ms",
    ];
    let _ = pair.source.vmm(set).success();
    migration.finish().completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

#[test]
fn downtime_limit_decides_when_the_guest_is_stopped() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    // The guest dirties more than the link carries: it cannot converge to so short a downtime.
    let guest = Guest::slow_to_move().and("dirty_rate=4000");
    let mut console = pair.source.run("guest", &guest);
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let tight = ["--bandwidth", "16MiB/s", "--downtime-limit", "5ms"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &tight);
    migration.wait_for("a third pass", |event| {
        event["event"] == "iteration" && event["n"] == 3
    });
    assert_eq!(pair.source.status("guest")["state"], "running");
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--set", "downtime-limit=30s"])
        .success();
    let report = migration.finish().completed();
    assert!(
        report["iterations"].as_array().map(Vec::len) >= Some(3),
        "{report:#}"
    );
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

#[test]
fn time_out_does_what_was_asked() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let guest = Guest::slow_to_move();
    let mut console = pair.source.run("guest", &guest);
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let cancel = [
        "--bandwidth",
        "1MiB/s",
        "--timeout",
        "700ms",
        "--on-timeout",
        "cancel",
    ];
    let ended = Migration::start(&pair.source, "guest", &address, &cancel).finish();
    assert_eq!(ended.code, 1, "{:#}", ended.report);
    assert!(
        ended.ended(1, "failed").contains("not finished within"),
        "{:#}",
        ended.report
    );
    assert_eq!(pair.source.status("guest")["state"], "running");
    console.verifies_ledger();
    pair.destination.is_clean();

    let again = pair.destination.receive("again", "127.0.0.1:0");
    let stop = [
        "--bandwidth",
        "16MiB/s",
        "--downtime-limit",
        "1ms",
        "--timeout",
        "300ms",
        "--on-timeout",
        "stop",
    ];
    Migration::start(&pair.source, "guest", &again, &stop)
        .finish()
        .completed();
    console.moves_to(&pair.destination, "again");
    console.verifies_ledger();
}

#[test]
fn user_may_pause_and_resume_during_precopy() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut migration = Migration::start(&pair.source, "guest", &address, &SLOW);
    migration.wait_progress();
    let _ = pair.source.vmm(["pause", "guest"]).success();
    assert_eq!(pair.source.status("guest")["state"], "paused");
    let _ = pair.source.vmm(["resume", "guest"]).success();
    assert_eq!(pair.source.status("guest")["state"], "running");
    console.wait_tick();
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--set", FAST])
        .success();
    migration.finish().completed();
    console.moves_to(&pair.destination, "guest");
    assert_eq!(pair.destination.status("guest")["state"], "running");
    console.verifies_ledger();
}

#[test]
fn paused_guest_arrives_paused() {
    let Some(_gate) = gate() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    // Paused before, and paused while pages are on their way: the user's word counts either way.
    for when in ["before", "during"] {
        println!("{when}");
        let (from, to) = if when == "before" {
            (&pair.source, &pair.destination)
        } else {
            (&pair.destination, &pair.source)
        };
        let address = to.receive("guest", "127.0.0.1:0");
        if when == "before" {
            let _ = from.vmm(["pause", "guest"]).success();
        }
        let mut migration = Migration::start(from, "guest", &address, &SLOW);
        migration.wait_progress();
        if when == "during" {
            let _ = from.vmm(["pause", "guest"]).success();
        }
        let _ = from.vmm(["migrate", "guest", "--set", FAST]).success();
        let report = migration.finish().completed();
        assert_eq!(report["verified"], true, "{report:#}");
        from.is_clean();
        console.moves_to(to, "guest");
        assert_eq!(to.status("guest")["state"], "paused");
        let silent = console.text();
        assert_eq!(to.status("guest")["state"], "paused");
        assert_eq!(console.text(), silent, "a paused guest prints nothing");
        let _ = to.vmm(["resume", "guest"]).success();
        assert_eq!(to.status("guest")["state"], "running");
        console.verifies_ledger();
    }
}
