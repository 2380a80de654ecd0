//! Stock distribution kernels on a real `kvm_amd`: boot under `vmm run` with their root on virtio-blk,
//! are migrated and migrated back while they write files, and lose nothing: no file, no register, no
//! timer, no time, no byte of a TCP session.

use std::path::Path;
use std::time::Duration;

use tests::nested::level1::{Level1, Run};
use tests::nested::level2::{self, Node};
use tests::nested::outcome::Outcome;
use tests::nested::rig::{Kernel, Rig, find_program};
use tests::{binary, skip};

/// Ends what hangs; a run takes a fifth of it.
const DEADLINE: Duration = Duration::from_secs(900);

/// Overrides the scenarios, separated by spaces: `stock-2 stock-2 stock-2` looks for what happens seldom.
const SCENARIOS_VARIABLE: &str = "VMM_NESTED_SCENARIOS";

/// CPUs of level 1. With two, the emulator runs two vCPUs of the same guest at the same moment, and two
/// guests in some twenty failed, one of them by a triple fault before it was ever moved (docs/testing.md).
const LEVEL1_CPUS: u32 = 1;

fn run_scenarios(rig: &Rig, backports: Option<&Kernel>, scenarios: &str) -> anyhow::Result<Run> {
    let witness = Path::new(env!("CARGO_BIN_EXE_witness"));
    let settings = format!(
        "SCENARIOS='{scenarios}'\nCMDLINE='{}'\nDISK_SIZE={}\n",
        level2::CMDLINE,
        level2::DISK_SIZE
    );
    let mut level1 = Level1::new(rig, include_str!("../src/nested/guest/scenario.sh"))?
        .cpus(LEVEL1_CPUS)
        .file("settings", settings.as_bytes())
        .program("vmm", binary::vmm()?)?
        .program("witness", witness)?
        .program("ip", &find_program("ip")?)?
        .program("mke2fs", &find_program("mke2fs")?)?
        .program("e2fsck", &find_program("e2fsck")?)?;
    for (name, kernel) in [("stock", Some(rig.kernel())), ("backports", backports)] {
        let Some(kernel) = kernel else { continue };
        level1 = level1
            .file(&format!("{name}.vmlinuz"), &std::fs::read(kernel.image())?)
            .file(
                &format!("{name}.cpio"),
                &level2::initramfs(&kernel.modules()?)?,
            );
    }
    for node in level2::root_tree(witness)? {
        level1 = match node {
            Node::Directory(path) => level1.directory(&format!("root/{path}")),
            Node::Program(path, content) => level1.file(&format!("root/{path}"), &content),
        };
    }
    level1.run("nested", DEADLINE)
}

#[test]
fn distribution_kernels_move_there_and_back_and_lose_nothing() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let backports = rig.backports_kernel();
    let scenarios = match (std::env::var(SCENARIOS_VARIABLE), &backports) {
        (Ok(chosen), _) => chosen,
        (Err(_), Ok(_)) => "stock-1 stock-2 backports-2-x86-64-v2".into(),
        (Err(_), Err(reason)) => {
            println!("{}", skip::line(format_args!("backports kernel: {reason}")));
            "stock-1 stock-2 stock-2-x86-64-v2".into()
        }
    };
    let run = run_scenarios(&rig, backports.as_ref().ok(), &scenarios).unwrap();
    for line in run.lines_after("scenario: ") {
        println!("{line}");
    }
    assert_eq!(
        run.code,
        0,
        "log {}, its end:\n{}",
        run.log_file.display(),
        run.tail()
    );
    for name in scenarios.split_whitespace() {
        Outcome::from_log(name, &run).check();
    }
}
