//! `vmm bench`: that it measures every contender by the same definitions, and leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::blackbox::guest_lock;
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

#[test]
fn every_contender_is_measured_by_the_same_columns() {
    let Some(_lock) = guest_lock() else { return };
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
fn an_interrupted_or_killed_benchmark_leaves_no_process() {
    let Some(_lock) = guest_lock() else { return };
    for signal in [Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().unwrap();
        let endless = [
            "--runs",
            "1000",
            "--memory",
            "64MiB",
            "--scenario",
            "idle",
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
