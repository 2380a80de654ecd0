//! A migration is watched, steered and given up while it runs; the guest is never the one to suffer.
//! What is asked for in each phase is in `matrix.rs`.

use serde_json::Value;
use tests::Host;
use tests::blackbox::{Guest, Migration, Pair, Vms, fails, guest_lock, holds, one_json};

/// Slow enough that a test has all the time that it needs.
const SLOW: [&str; 2] = ["--bandwidth", "4MiB/s"];
const FAST: &str = "bandwidth=10GiB/s";

#[test]
fn cancel_needs_a_migration() {
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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

/// The one job of a VM.
fn only_job(host: &Host, vm: &str) -> Value {
    let mut jobs = host.jobs(vm);
    assert_eq!(jobs.len(), 1, "{jobs:#?}");
    jobs.remove(0)
}

fn id_of(job: &Value) -> &str {
    job["id"].as_str().expect("identifier")
}

#[test]
fn a_migration_is_a_job_on_both_hosts() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    assert_eq!(pair.source.jobs("guest"), [] as [Value; 0]);
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut migration = Migration::start(&pair.source, "guest", &address, &SLOW);
    migration.wait_progress();

    let job = only_job(&pair.source, "guest");
    assert_eq!(job["kind"], "migration", "{job:#}");
    assert_eq!(job["state"], "running", "{job:#}");
    assert_eq!(job["to"], *address, "{job:#}");
    assert_eq!(job["progress"]["phase"], "precopy", "{job:#}");
    let bytes = |name: &str| job["progress"][name].as_u64().expect("bytes");
    assert!(bytes("done_bytes") < bytes("total_bytes"), "{job:#}");
    assert_eq!(job["limits"]["downtime_limit_ms"], 300, "{job:#}");
    assert_eq!(job["limits"]["bandwidth_bytes_per_s"], 4 << 20, "{job:#}");
    let status = pair.source.status("guest");
    assert_eq!(status["migration"]["id"], job["id"], "{status:#}");

    // It goes by the same name where it comes in, and has its limits where it leaves.
    let incoming = only_job(&pair.destination, "guest");
    assert_eq!(incoming["id"], job["id"]);
    assert_eq!(incoming["state"], "running", "{incoming:#}");
    let set = ["jobs", "guest", id_of(&job), "--set", FAST];
    fails(pair.destination.vmm(set), 1, &["limits"]);

    // Either way leads to the same limits; the last one lets it end.
    let set = ["migrate", "guest", "--set", "downtime-limit=250ms"];
    let _ = pair.source.vmm(set).success();
    let job = only_job(&pair.source, "guest");
    assert_eq!(job["limits"]["downtime_limit_ms"], 250, "{job:#}");
    let set = [
        "jobs",
        "guest",
        id_of(&job),
        "--set",
        "bandwidth=1GiB/s",
        "--json",
    ];
    let job = one_json(&pair.source.vmm(set).success());
    assert_eq!(job["limits"]["bandwidth_bytes_per_s"], 1 << 30, "{job:#}");
    migration.finish().completed();
    console.moves_to(&pair.destination, "guest");
    // The source hears of the guest's first instruction before the destination has told its own end.
    holds("the job is over at the destination", || {
        only_job(&pair.destination, "guest")["state"] == "concluded"
    });
    let job = only_job(&pair.destination, "guest");
    assert_eq!(job["result"]["outcome"], "completed", "{job:#}");
    console.verifies_ledger();
}

#[test]
fn a_job_is_cancelled_once_and_told_of_afterwards() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let mut migration = Migration::start(&pair.source, "guest", &address, &SLOW);
    migration.wait_progress();
    let first = only_job(&pair.source, "guest");
    let cancel = ["jobs", "guest", id_of(&first), "--cancel"];
    let _ = pair.source.vmm(cancel).success();
    let _ = migration.finish().ended(4, "cancelled");
    let job = only_job(&pair.source, "guest");
    assert_eq!(job["state"], "concluded", "{job:#}");
    assert_eq!(job["result"]["outcome"], "cancelled", "{job:#}");
    fails(pair.source.vmm(cancel), 1, &["is over"]);
    let set = ["jobs", "guest", id_of(&first), "--set", FAST];
    fails(pair.source.vmm(set), 1, &["is over"]);
    fails(pair.source.vmm(["jobs", "guest", "7"]), 1, &["no job"]);
    console.verifies_ledger();
    pair.destination.is_clean();

    // The next one is a job beside it.
    let nowhere = pair.source.runtime_dir().join("nobody");
    let to = format!("unix:{}", nowhere.display());
    let _ = pair
        .source
        .vmm(["migrate", "guest", "--to", &to])
        .expect_code(1);
    let jobs = pair.source.jobs("guest");
    let outcomes: Vec<_> = jobs.iter().map(|job| &job["result"]["outcome"]).collect();
    assert_eq!(outcomes, ["cancelled", "failed"], "{jobs:#?}");
    assert_eq!(jobs[0]["id"], first["id"]);
    assert!(jobs[1]["result"]["error"]["id"].is_string(), "{jobs:#?}");
}

#[test]
fn limits_change_while_it_runs() {
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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
    let Some(_lock) = guest_lock() else { return };
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
