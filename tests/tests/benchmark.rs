//! `vmm bench`: that it measures every contender by the same definitions, and leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::blackbox::machine_lock;
use tests::process::Process;

use tests::{binary, eventually};

const MEASURED: Duration = Duration::from_secs(400);
const DEADLINE: Duration = Duration::from_secs(60);

/// A benchmark whose temporary folder, and so that of all that it starts, is `dir`.
fn bench(dir: &Path, arguments: &[&str]) -> Process {
    let mut command = Command::new(binary::vmm().unwrap());
    command.arg("bench").args(arguments).env("TMPDIR", dir);
    Process::start(command, dir).unwrap()
}

/// Living processes whose temporary folder is `dir`, zombies aside.
fn processes(dir: &Path) -> Vec<u32> {
    let wanted = [b"TMPDIR=", dir.as_os_str().as_encoded_bytes()].concat();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|item| item == wanted))
    })
    .collect()
}

fn folders(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("vmm-bench"))
        .collect()
}

/// A contender took all its turns and has a figure above 0 in each of these columns.
#[track_caller]
fn are_measured(contender: &Value, columns: &[&str]) {
    assert_eq!(contender["gave_up"], Value::Null, "{contender}");
    for column in columns {
        let median = contender[*column]["median"].as_f64();
        assert!(median.is_some_and(|m| m > 0.0), "{column} of {contender}");
    }
}

#[test]
fn every_contender_is_measured_by_the_same_columns() {
    let Some(_lock) = machine_lock() else { return };
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("figures.md");
    std::fs::write(&page, "# Figures\n\nwritten by hand\n").unwrap();
    let arguments = [
        "--runs",
        "1",
        "--memory",
        "16MiB",
        "--scenario",
        "dirty",
        "--json",
    ];
    let page_argument = ["--page", page.to_str().unwrap()];
    let measured = bench(dir.path(), &[&arguments[..], &page_argument].concat())
        .finish(MEASURED)
        .unwrap()
        .success();
    let figures = &measured.json_lines()[0];
    let peers = figures["peers"].as_array().unwrap();
    if peers.is_empty() {
        println!(
            "skipped: there is no QEMU to compare with: {}",
            figures["absent"]
        );
    }
    let contenders = figures["scenarios"][0]["contenders"].as_array().unwrap();
    // The engine, the limit cold and populated, and each QEMU plain and with 1, 2 and 4 channels.
    assert_eq!(contenders.len(), 3 + 4 * peers.len(), "{measured}");
    for contender in contenders {
        assert_eq!(contender["gave_up"], Value::Null, "{measured}");
        let mut columns = vec!["total_ms", "guest_gap_ms", "cpu_s", "wire_bytes"];
        let is_limit = contender["role"].as_str().unwrap().ends_with("limit");
        if !is_limit {
            columns.extend(["first_tick_ms", "prepare_ms", "dirtied_pages_per_s"]);
        }
        for column in columns {
            let median = contender[column]["median"].as_f64();
            let least = if column == "cpu_s" { -1.0 } else { 0.0 };
            assert!(median.is_some_and(|m| m > least), "{column} of {contender}");
        }
        let wire = contender["wire_bytes"]["median"].as_f64().unwrap();
        assert!(wire >= f64::from(16 << 20), "all data travels: {contender}");
        let ratio = contender["total_to_best_peer"].as_f64();
        assert_eq!(
            ratio.is_some(),
            !is_limit && !peers.is_empty(),
            "{contender}"
        );
    }
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(
        text.contains("written by hand") && text.contains("figures-dirty.svg"),
        "{text}"
    );
    let picture = std::fs::read_to_string(dir.path().join("figures-dirty.svg")).unwrap();
    assert!(
        picture.starts_with("<svg") && picture.contains("plain copy"),
        "{picture}"
    );
    assert_eq!(folders(dir.path()), [""; 0]);
    assert_eq!(processes(dir.path()), [0; 0]);
}

#[test]
fn requests_of_disks_are_measured_at_every_depth_and_recorded_by_themselves() {
    let Some(_lock) = machine_lock() else { return };
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("figures.md");
    std::fs::write(&page, "# Figures\n\nwritten by hand\n").unwrap();
    let arguments = ["--quick", "--scenario", "disk-iops", "--json", "--page"];
    let page_argument = [page.to_str().unwrap()];
    let measured = bench(dir.path(), &[&arguments[..], &page_argument].concat())
        .finish(MEASURED)
        .unwrap()
        .success();
    let figures = &measured.json_lines()[0];
    let peers = figures["peers"].as_array().unwrap();
    if peers.is_empty() {
        println!(
            "skipped: there is no QEMU to compare with: {}",
            figures["absent"]
        );
    }
    let formats = figures["disk_iops"].as_array().unwrap();
    // The engine goes past the cache with raw images only.
    for (format, (name, engines)) in formats.iter().zip([("raw", 2), ("qcow2", 1)]) {
        assert_eq!(format["format"], name, "{measured}");
        let cells = format["cells"].as_array().unwrap();
        let asked: Vec<_> = cells
            .iter()
            .map(|cell| {
                (
                    cell["op"].as_str().unwrap(),
                    cell["depth"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            asked,
            [("read", 1), ("read", 32), ("write", 1), ("write", 32)]
        );
        for cell in cells {
            let contenders = cell["contenders"].as_array().unwrap();
            // Each QEMU by io_uring in two ways and through the cache.
            assert_eq!(contenders.len(), engines + 3 * peers.len(), "{measured}");
            for contender in contenders {
                are_measured(contender, &["iops", "p50_ms", "p99_ms"]);
                let ratio = contender["iops_to_best_peer"].as_f64();
                assert_eq!(ratio.is_some(), !peers.is_empty(), "{contender}");
            }
        }
    }
    assert_eq!(formats.len(), 2, "{measured}");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(
        text.contains("written by hand") && text.contains("### disk-iops qcow2"),
        "{text}"
    );
    assert!(dir.path().join("figures-disks.json").is_file());
    assert!(!dir.path().join("figures.json").exists());
    assert_eq!(folders(dir.path()), [""; 0]);
    assert_eq!(processes(dir.path()), [0; 0]);
}

#[test]
fn a_disk_that_moves_is_measured_beside_mirrors_and_the_plain_copy() {
    let Some(_lock) = machine_lock() else { return };
    let dir = tempfile::tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    let page = dir.path().join("figures.md");
    let arguments = [
        "--runs",
        "1",
        "--memory",
        "8MiB",
        "--scenario",
        "disk-move",
        "--json",
        "--images",
        images.path().to_str().unwrap(),
        "--page",
        page.to_str().unwrap(),
    ];
    let measured = bench(dir.path(), &arguments)
        .finish(MEASURED)
        .unwrap()
        .success();
    let figures = &measured.json_lines()[0];
    let peers = figures["peers"].as_array().unwrap().len();
    let moved = &figures["disk_moves"][0];
    let no_copy = moved["no_plain_copy"].as_str();
    if peers == 0 {
        println!(
            "skipped: there is no QEMU to compare with: {}",
            figures["absent"]
        );
    }
    if let Some(why) = no_copy {
        println!("skipped: there is no plain copy to compare with: {why}");
    }
    assert_eq!(moved["name"], "disk-move");
    assert_eq!(moved["disk_bytes"], 32 << 20, "{measured}");
    let contenders = moved["contenders"].as_array().unwrap();
    let of_role = |role: &str| -> Vec<&Value> {
        let all = contenders.iter();
        all.filter(|contender| contender["role"] == role).collect()
    };
    for role in ["engine", "further_engine", "engine_for_bulk", "peer"] {
        let wanted = if role == "peer" { 3 * peers } else { 1 };
        let found = of_role(role);
        assert_eq!(found.len(), wanted, "{role}: {measured}");
        for contender in found {
            let columns = [
                "total_ms",
                "guest_gap_ms",
                "write_p99_ms",
                "writes_per_s",
                "bulk_bytes_per_s",
            ];
            are_measured(contender, &columns);
            assert!(contender["page_cache_growth_bytes"]["median"].is_f64());
        }
    }
    are_measured(of_role("engine_without_disks")[0], &["total_ms"]);
    // What goes over is counted for all alike where the loopback can be a run's own, as by root.
    // How often a peer sends what is written again is its own affair.
    for (role, most) in [("engine", 3.0), ("peer", f64::INFINITY)] {
        for contender in of_role(role) {
            let wire = contender["wire_to_data"]["median"].as_f64();
            assert!(
                wire.is_none_or(|wire| (0.99..most).contains(&wire)),
                "{contender}"
            );
        }
    }
    let engine = of_role("engine")[0];
    assert_eq!(
        engine["total_to_best_peer"].is_f64(),
        peers > 0,
        "{measured}"
    );
    assert_eq!(
        engine["write_p99_to_best_peer"].is_f64(),
        peers > 0,
        "{measured}"
    );
    assert!(engine["gap_added_ms"].is_f64(), "{measured}");
    let copied = of_role("plain_copy");
    assert_eq!(copied.len(), usize::from(no_copy.is_none()), "{measured}");
    for copy in &copied {
        are_measured(copy, &["total_ms", "bulk_bytes_per_s"]);
    }
    let bulk = of_role("engine_for_bulk")[0];
    assert_eq!(
        bulk["bulk_to_plain_copy"].is_f64(),
        !copied.is_empty(),
        "{measured}"
    );
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("### disk-move\n"), "{text}");
    assert!(dir.path().join("figures-disk-moves.json").is_file());
    assert!(!dir.path().join("figures.json").exists());
    assert_eq!(folders(dir.path()), [""; 0]);
    assert_eq!(folders(images.path()), [""; 0]);
    assert_eq!(processes(dir.path()), [0; 0]);
}

#[test]
fn what_disks_add_pause_send_again_and_cost_is_measured() {
    let Some(_lock) = machine_lock() else { return };
    let dir = tempfile::tempdir().unwrap();
    let scenarios = ["disk-downtime", "disk-local", "disk-busy", "disk-on-demand"];
    let mut arguments = vec!["--runs", "1", "--memory", "8MiB", "--no-qemu", "--json"];
    for scenario in scenarios.iter().chain(&["disk-tracking"]) {
        arguments.extend(["--scenario", scenario]);
    }
    let measured = bench(dir.path(), &arguments)
        .finish(MEASURED)
        .unwrap()
        .success();
    let figures = &measured.json_lines()[0];
    let moves = figures["disk_moves"].as_array().unwrap();
    let names: Vec<_> = moves.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, scenarios);
    let contenders = |scenario: usize| moves[scenario]["contenders"].as_array().unwrap();
    let [none, one, four] = &contenders(0)[..] else {
        panic!("no, one and four disks: {measured}")
    };
    for (guest, disks) in [(none, false), (one, true), (four, true)] {
        are_measured(guest, &["total_ms", "downtime_ms", "guest_gap_ms"]);
        assert_eq!(guest["downtime_added_ms"].is_f64(), disks, "{guest}");
        assert_eq!(guest["disk_sent_to_data"].is_object(), disks, "{guest}");
    }
    let local = &contenders(1)[0];
    are_measured(local, &["total_ms", "io_pause_ms", "write_p99_ms"]);
    // There and back, twice.
    let pauses = local["io_pause_ms"]["values"].as_array().unwrap();
    assert_eq!(pauses.len(), 4, "{local}");
    let busy = &contenders(2)[0];
    are_measured(busy, &["total_ms", "writes_per_s"]);
    let sent = busy["disk_sent_to_data"]["median"].as_f64().unwrap();
    assert!(sent >= 1.0, "all of it travels: {busy}");
    let first = &contenders(3)[0];
    are_measured(first, &["total_ms", "runs_ms", "bulk_bytes_per_s"]);
    let tracking = &figures["disk_tracking"];
    let share = |end: &str| tracking[end].as_f64().unwrap();
    assert!(
        share("share_low") < share("share") && share("share") < share("share_high"),
        "{tracking}"
    );
    let pairs = tracking["tracked_cpu_us"]["values"].as_array().unwrap();
    assert!(pairs.len() >= 20, "{tracking}");
    assert_eq!(folders(dir.path()), [""; 0]);
    assert_eq!(processes(dir.path()), [0; 0]);
}

#[test]
fn images_in_memory_are_refused_before_anything_is_started() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        println!("skipped: there is no /dev/shm");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--scenario", "disk-local", "--images", "/dev/shm"];
    let refused = bench(dir.path(), &arguments).finish(DEADLINE).unwrap();
    assert_eq!(refused.code(), 2, "{refused}");
    assert!(refused.stderr.contains("--images"), "{refused}");
    assert_eq!(folders(dir.path()), [""; 0]);
}

#[test]
fn an_interrupted_or_killed_benchmark_leaves_no_process() {
    let Some(_lock) = machine_lock() else { return };
    for (signal, scenario) in [
        (Signal::TERM, "idle"),
        (Signal::KILL, "idle"),
        (Signal::TERM, "disk-move"),
        (Signal::KILL, "disk-move"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let endless = [
            "--runs",
            "1000",
            "--memory",
            "64MiB",
            "--scenario",
            scenario,
            "--no-qemu",
        ];
        let bench = bench(dir.path(), &endless);
        let pid = bench.pid();
        let runs = eventually(DEADLINE, || {
            (processes(dir.path()).len() >= 2).then_some(())
        });
        assert!(runs.is_some(), "{}", bench.stderr());
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
        let outcome = bench.finish(DEADLINE).unwrap();
        let gone = eventually(DEADLINE, || processes(dir.path()).is_empty().then_some(()));
        assert!(
            gone.is_some(),
            "{signal:?}: {:?} live on",
            processes(dir.path())
        );
        if signal == Signal::TERM {
            assert_eq!(outcome.code(), 4, "{outcome}");
            assert_eq!(folders(dir.path()), [""; 0]);
        }
    }
}
