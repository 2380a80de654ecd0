//! The destination lacks something.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::Fault;
use crate::blackbox::{Pair, Vms};
use crate::matrix::scene::{NAME, SetUp};
use crate::matrix::{Cell, Phase, Scene, Whereabouts};

const NO_MEMORY: [&[&str]; 2] = [
    &["migration.peer-failed", "machine.memory", "os.no-memory"],
    &["migration.failed", "machine.memory", "os.no-memory"],
];
/// What the destination says of a source that lacks a thread.
const LEFT: &[&str] = &[
    "migration.failed",
    "migration.peer-failed",
    "migration.thread",
    "os.no-threads",
];
/// What a process that gets no more may still use: enough for small things, too little for a thread.
const CRUMBS: u64 = 1 << 20;

/// Lacks of a host.
pub fn all() -> Vec<Fault> {
    vec![
        Fault {
            lacks: lacks_mounts,
            set_up: small_state_dir,
            ..Fault::new(
                "no space for records",
                fill_state_dir,
                |phase| match phase {
                    // What is recorded later was reserved.
                    Phase::Negotiate => Cell::refused(
                        &[
                            "migration.failed",
                            "migration.peer-failed",
                            "migration.journal",
                            "os.no-space",
                        ],
                        &["migration.failed", "migration.journal", "os.no-space"],
                    ),
                    _ => Cell::completes(Whereabouts::Destination),
                },
            )
        },
        Fault::new(
            "no memory at source",
            no_more_at_source,
            |phase| match phase {
                Phase::Negotiate | Phase::Prepare => Cell::stays(
                    &["migration.failed", "migration.thread", "os.no-threads"],
                    LEFT,
                ),
                // All that is needed is there.
                _ => Cell::completes(Whereabouts::Destination),
            },
        ),
        Fault::new(
            "no memory at destination",
            no_more_there,
            |phase| match phase {
                Phase::Negotiate => Cell::refused(NO_MEMORY[0], NO_MEMORY[1]),
                Phase::Prepare => Cell::stays(
                    &["migration.peer-failed", "migration.thread", "os.no-threads"],
                    &["migration.failed", "migration.thread", "os.no-threads"],
                ),
                _ => Cell::completes(Whereabouts::Destination),
            },
        ),
    ]
}

fn no_more_at_source(scene: &mut Scene) {
    run_on_without(scene, scene.pair.source.pid(NAME));
}

fn no_more_there(scene: &mut Scene) {
    run_on_without(scene, scene.pair.destination.pid(NAME));
}

/// The process gets no more memory until the migration has ended.
fn run_on_without(scene: &mut Scene, pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let size = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmSize:")?
                .split_ascii_whitespace()
                .next()
        })
        .and_then(|kib| kib.parse::<u64>().ok())
        .expect("VmSize");
    let limited = limit_memory(pid, &((size << 10) + CRUMBS).to_string());
    assert!(limited.status.success(), "{limited:?}");
    scene.go_on();
    scene.ended();
    // The process may have ended.
    let _ = limit_memory(pid, "unlimited");
}

fn limit_memory(pid: u32, bytes: &str) -> std::process::Output {
    let limit = format!("--as={bytes}:unlimited");
    Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &limit])
        .output()
        .expect("prlimit starts")
}

fn state_dir(pair: &Pair) -> std::path::PathBuf {
    pair.destination.path().join("state")
}

fn lacks_mounts() -> Option<String> {
    let tried = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "true"])
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no mount namespace can be made: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare cannot be started: {error}")),
    }
}

/// The destination's records lie on a file system of their own, which only its process sees.
fn small_state_dir(pair: &Pair, _: &tempfile::TempDir) -> SetUp {
    let dir = state_dir(pair);
    std::fs::create_dir(&dir).expect("state directory");
    let around = move |command: Command| {
        let script = "mount -t tmpfs -o size=256k,mode=700 none \"$VMM_STATE_DIR\" && exec \"$@\"";
        let mut wrapped = Command::new("unshare");
        wrapped.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ]);
        inherit(&mut wrapped, &command);
        wrapped.env("VMM_STATE_DIR", &dir);
        wrapped
    };
    SetUp {
        around_receiver: Some(Box::new(around)),
        ..SetUp::default()
    }
}

/// Makes `wrapped` run `command`.
fn inherit(wrapped: &mut Command, command: &Command) {
    wrapped.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
}

fn fill_state_dir(scene: &mut Scene) {
    let pid = scene.pair.destination.pid(NAME);
    let inside = Path::new("/proc").join(pid.to_string()).join("root");
    let dir = state_dir(&scene.pair);
    let path = inside
        .join(dir.strip_prefix("/").expect("absolute"))
        .join("filler");
    let mut filler = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let full = loop {
        if let Err(error) = filler.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    drop(filler);
    scene.go_on();
    scene.ended();
}
