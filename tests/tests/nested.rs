//! A stock distribution kernel on a real `kvm_amd`: boots under `vmm run` with its root on virtio-blk,
//! is migrated and migrated back while it writes files, and loses nothing.

use std::time::Duration;

use serde_json::Value;
use tests::nested::level1::{Level1, Run};
use tests::nested::level2::{self, Node};
use tests::nested::rig::{Rig, find_program};
use tests::{binary, skip};

/// Ends what hangs; a run takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(900);

/// Overrides the numbers of vCPUs, separated by spaces: `2 2 2 2` looks for what happens seldom.
const CPUS_VARIABLE: &str = "VMM_NESTED_CPUS";

/// CPUs of level 1. With two, the emulator runs two vCPUs of the same guest at the same moment, and two
/// guests in some twenty failed, one of them by a triple fault before it was ever moved (docs/testing.md).
const LEVEL1_CPUS: u32 = 1;

/// Runs the scenario with each of these numbers of vCPUs, in one boot of level 1.
fn run_scenario(rig: &Rig, name: &str, cpus: &str) -> anyhow::Result<Run> {
    let settings = format!(
        "CPUS='{cpus}'\nCMDLINE='{}'\nDISK_SIZE={}\n",
        level2::CMDLINE,
        level2::DISK_SIZE
    );
    let mut level1 = Level1::new(rig, include_str!("../src/nested/guest/scenario.sh"))?
        .cpus(LEVEL1_CPUS)
        .file("settings", settings.as_bytes())
        .file("vmlinuz", &std::fs::read(rig.kernel())?)
        .file("level2.cpio", &level2::initramfs(&rig.modules()?)?)
        .program("vmm", binary::vmm()?)?
        .program("mke2fs", &find_program("mke2fs")?)?
        .program("e2fsck", &find_program("e2fsck")?)?;
    for node in level2::root_tree()? {
        level1 = match node {
            Node::Directory(path) => level1.directory(&format!("root/{path}")),
            Node::Program(path, content) => level1.file(&format!("root/{path}"), &content),
        };
    }
    level1.run(name, DEADLINE)
}

#[test]
fn stock_kernel_moves_there_and_back_while_it_writes_and_loses_nothing() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let cpus = std::env::var(CPUS_VARIABLE).unwrap_or_else(|_| "1 2".into());
    let run = run_scenario(&rig, "nested", &cpus).unwrap();
    assert_eq!(
        run.code,
        0,
        "log {}, its end:\n{}",
        run.log_file.display(),
        run.tail()
    );

    let reports: Vec<Value> = run
        .lines_after("report: ")
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        reports.len(),
        2 * cpus.split_whitespace().count(),
        "two moves with each number of vCPUs: {reports:?}"
    );
    for report in &reports {
        assert_eq!(report["event"], "completed", "{report}");
        assert_eq!(report["verified"], true, "{report}");
        assert!(
            report["downtime_ms"].as_f64().is_some_and(|ms| ms > 0.0),
            "{report}"
        );
    }
}
