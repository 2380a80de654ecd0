//! Jobs that move disks, followed and steered.

use std::path::Path;

use serde_json::Value;
use tests::Host;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Pair, Vms, eventually, guest_lock, images};
use tests::process::Process;

const SIZE: u64 = 32 << 20;
/// Slow enough that there is time to do something while it copies.
const SLOW: &str = "1MiB/s";

/// A guest with two disks, each full.
fn runs(host: &Host) {
    let disks = ["one", "two"].map(|id| {
        let path = images::sparse(host.path(), &format!("{id}.raw"), SIZE);
        std::fs::write(&path, vec![0x5a; SIZE as usize]).expect("content");
        path
    });
    let guest = Guest::dirtying()
        .disk_with(&disks[0], "id=one", "block=verify,size=4M block_rate=200")
        .disk_with(&disks[1], "id=two", "");
    let mut console = host.run("guest", &guest);
    console.verifies_blocks();
}

/// A move that goes on, with its job.
#[track_caller]
fn begins(host: &Host, disk: &str, to: &Path) -> (Process, Value) {
    let name = format!("guest:{disk}");
    let to = to.display().to_string();
    let running = host.spawn([
        "disk",
        "move",
        &name,
        "--to",
        &to,
        "--bandwidth",
        SLOW,
        "--json",
    ]);
    let job = eventually("the move copies", || {
        let mut jobs = host.jobs("guest").into_iter();
        jobs.find(|job| job["disk"] == disk && job["progress"]["done_bytes"].as_u64() > Some(0))
    });
    (running, job)
}

fn limit_of(host: &Host, job: &Value) -> u64 {
    let id = job["id"].as_str().expect("id");
    let mut jobs = host.jobs("guest").into_iter();
    let job = jobs.rfind(|job| job["id"] == id);
    let limits = &job.expect("the job")["limits"];
    limits["bandwidth_bytes_per_s"].as_u64().expect("a limit")
}

#[test]
fn moves_are_steered_by_the_disk_and_followed_to_their_ends() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    runs(host);
    let to = ["one", "two"].map(|id| host.path().join(format!("{id}-there.raw")));
    let (one_moves, one) = begins(host, "one", &to[0]);
    let set = |limits: &str, more: &[&str]| {
        let args = ["disk", "jobs", "guest", "--set", limits];
        host.vmm(args.iter().chain(more).copied())
    };
    // One moves: there is no doubt about which.
    let _ = set("bandwidth=2MiB/s", &[]).success();
    assert_eq!(limit_of(host, &one), 2 << 20);
    let (two_moves, two) = begins(host, "two", &to[1]);
    let said = set("bandwidth=3MiB/s", &[]).expect_code(2).stderr;
    assert!(said.contains("more than one"), "{said}");
    let said = set("other,bandwidth=3MiB/s", &[]).expect_code(1).stderr;
    assert!(said.contains("disk other"), "{said}");
    let id = two["id"].as_str().expect("id");
    let said = set("one,bandwidth=3MiB/s", &["--job", id])
        .expect_code(2)
        .stderr;
    assert!(said.contains("either"), "{said}");
    let said = set("two,writes=3MiB/s", &[]).expect_code(2).stderr;
    assert!(said.contains("writes is of mirror"), "{said}");
    assert_eq!(
        (limit_of(host, &one), limit_of(host, &two)),
        (2 << 20, 1 << 20)
    );

    // Who follows is told what changes, and the end.
    let follows = host.spawn(["jobs", "guest", id, "--follow", "--json"]);
    let _ = set("two,bandwidth=4MiB/s", &[]).success();
    assert_eq!(
        (limit_of(host, &one), limit_of(host, &two)),
        (2 << 20, 4 << 20)
    );
    let _ = set("two,bandwidth=unlimited", &[]).success();
    let told = follows.finish(PATIENCE).expect("it ends").success();
    let told = told.json_lines();
    let last = told.last().expect("the job");
    assert_eq!(last["result"]["outcome"], "completed", "{last:#}");
    assert!(told.iter().all(|job| job["id"] == id));
    let _ = two_moves.finish(PATIENCE).expect("it ends").success();

    // People are told in words.
    let id = one["id"].as_str().expect("id");
    let _ = set("one,bandwidth=unlimited", &[]).success();
    let told = host.vmm(["jobs", "guest", id, "--follow"]).success();
    assert!(told.stdout.contains("completed"), "{told}");
    let _ = one_moves.finish(PATIENCE).expect("it ends").success();
    assert_eq!(
        host.status("guest")["disks"][0]["path"],
        to[0].display().to_string()
    );
    host.stop("guest");
    pair.is_clean();
}

#[test]
fn who_follows_a_job_of_a_guest_that_ends_hears_how_it_ended() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    runs(host);
    let to = host.path().join("there.raw");
    let (moves, job) = begins(host, "one", &to);
    let id = job["id"].as_str().expect("id");
    let follows = host.spawn(["jobs", "guest", id, "--follow", "--json"]);
    eventually("it is followed", || {
        let told = follows.stdout();
        told.contains(id).then_some(())
    });
    host.stop("guest");
    let told = follows.finish(PATIENCE).expect("it ends").expect_code(1);
    let last = told.json_lines().pop().expect("the job");
    assert_eq!(last["state"], "concluded", "{last:#}");
    assert_eq!(last["result"]["outcome"], "failed", "{last:#}");
    let _ = moves.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(!to.exists(), "a part of the disk is left");
    pair.is_clean();
}
