//! Stock distribution kernels on hardware virtualization, this machine's or one in emulation: they boot under
//! `vmm run` with their root on virtio-blk, are migrated and migrated back while they write files, and lose nothing:
//! no file, no register, no timer, no time, no byte of a TCP session. Each way in which they reset their machine
//! is a reset. A page cache is sent once. And a disk that only one host reaches travels with its guest.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::nested::direct;
use tests::nested::level1::Level1;
use tests::nested::level2::{self, Node};
use tests::nested::outcome::{Outcome, check_cache, check_disk, numbered};
use tests::nested::payload::Payload;
use tests::nested::rig::{Rig, find_program};
use tests::nested::run::Run;
use tests::{binary, skip};

/// Ends what hangs; a run takes a fifth of it.
const DEADLINE: Duration = Duration::from_secs(1200);

/// Overrides the scenarios, separated by spaces: `stock-2 stock-2 stock-2` looks for what happens seldom.
const SCENARIOS_VARIABLE: &str = "VMM_NESTED_SCENARIOS";
/// Overrides the resets, separated by spaces: a kernel, a way and a number of vCPUs, as in `stock-triple-2`.
const RESETS_VARIABLE: &str = "VMM_NESTED_RESETS";

/// Overrides the kernels whose page cache is moved, separated by spaces.
const CACHES_VARIABLE: &str = "VMM_NESTED_CACHES";

/// Overrides the guests whose disk travels, separated by spaces: a kernel, a number of vCPUs, whether the disk comes
/// back to the image that it was (`existing`) or to a new one (`create`), and by which modes it goes there and back, as in
/// `stock-1-create:mirror:on-demand`; or `all`, which is one there and back by each mode.
const DISKS_VARIABLE: &str = "VMM_NESTED_DISKS";

/// A scenario as it is, and as it is without the kernel that it asks for.
const SCENARIOS: &[(&str, &str)] = &[
    ("full-1", "stock-1"),
    ("stock-2", "stock-2"),
    ("backports-2-x86-64-v2", "stock-2-x86-64-v2"),
];
/// Every way in which a kernel tries to reset its machine (`guest/reset.sh`).
const RESETS: &[&str] = &[
    "default", "acpi", "kbd", "efi", "bios", "pci", "triple", "panic", "sysrq",
];

/// Kernels whose page cache is moved.
const CACHES: &str = "stock";
/// Size of the disk that is in it.
const CACHED_MIB: u64 = 200;

/// Guests whose disk travels.
const DISKS: &str = "stock-1-existing stock-1-create:on-demand:mirror";
/// All modes in which it does.
const MODES: &[&str] = &["precopy", "mirror", "on-demand"];
/// What is on it that the guest does not write to.
const COLD_MIB: u64 = 8;

/// The judge of images.
const QEMU_IMG: &str = "qemu-img";

/// CPUs of level 1. With two, the emulator runs two vCPUs of the same guest at the same moment, and two
/// guests in some twenty failed, one of them by a triple fault before it was ever moved (docs/testing.md).
const LEVEL1_CPUS: u32 = 1;

/// The kernel that `stock-2` or `full-triple-1` asks for.
fn kernel_of(what: &str) -> &str {
    what.split('-').next().unwrap_or(what)
}

/// The scenarios of every run, with what there is in the place of a kernel that is missing.
fn usual_scenarios(rig: &Rig) -> String {
    let each = SCENARIOS.iter().map(|(wanted, without)| {
        let kernel = kernel_of(wanted);
        if kernel == "stock" {
            return *wanted;
        }
        match rig.further_kernel(kernel) {
            Ok(_) => *wanted,
            Err(reason) => {
                println!("{}", skip::line(format_args!("{reason}")));
                *without
            }
        }
    });
    each.collect::<Vec<_>>().join(" ")
}

/// Every way with 1 and with 2 vCPUs.
fn usual_resets() -> String {
    let each = RESETS
        .iter()
        .flat_map(|way| [1, 2].map(|cpus| format!("stock-{way}-{cpus}")));
    each.collect::<Vec<_>>().join(" ")
}

/// None where nobody is there to judge what is left of the disks.
fn usual_disks() -> String {
    if find_program(QEMU_IMG).is_ok() {
        return DISKS.to_owned();
    }
    println!(
        "{}",
        skip::line(format_args!("{QEMU_IMG} is not installed"))
    );
    String::new()
}

/// Those of every run, and one guest for each mode.
fn all_disks() -> String {
    let each = MODES.iter();
    let each = each.map(|mode| format!("stock-1-create:{mode}:{mode}"));
    let each: Vec<_> = std::iter::once(DISKS.to_owned()).chain(each).collect();
    each.join(" ")
}

fn payload(
    rig: &Rig,
    scenarios: &[String],
    resets: &str,
    caches: &str,
    disks: &str,
) -> Result<Payload> {
    let witness = Path::new(env!("CARGO_BIN_EXE_witness"));
    let settings = [
        (
            "SANDBOX",
            &*std::env::var("VMM_SANDBOX").unwrap_or_else(|_| "on".into()),
        ),
        ("SCENARIOS", &*scenarios.join(" ")),
        ("RESETS", resets),
        ("CACHES", caches),
        ("DISKS", disks),
        ("CMDLINE", level2::CMDLINE),
        ("DISK_SIZE", level2::DISK_SIZE),
        ("CACHED_MIB", &*CACHED_MIB.to_string()),
        ("COLD_MIB", &*COLD_MIB.to_string()),
    ];
    let settings = settings.map(|(name, value)| format!("{name}='{value}'\n"));
    let mut payload = Payload::new(include_str!("../src/nested/guest/run.sh"))
        .file("host.sh", include_bytes!("../src/nested/guest/host.sh"))
        .file(
            "scenario.sh",
            include_bytes!("../src/nested/guest/scenario.sh"),
        )
        .file("reset.sh", include_bytes!("../src/nested/guest/reset.sh"))
        .file("cache.sh", include_bytes!("../src/nested/guest/cache.sh"))
        .file("disks.sh", include_bytes!("../src/nested/guest/disks.sh"))
        .file("transactions.sh", level2::TRANSACTIONS)
        .file("settings", settings.concat().as_bytes())
        .file("reset.cpio", &level2::reset_initramfs()?)
        .program("vmm", binary::vmm()?)
        .program("witness", witness);
    for program in ["ip", "mke2fs", "e2fsck", "debugfs"] {
        payload = payload.program(program, &find_program(program)?);
    }
    if !disks.is_empty() {
        payload = payload.program(QEMU_IMG, &find_program(QEMU_IMG)?);
    }
    let numbered = scenarios.iter().filter_map(|name| name.split_once(':'));
    let kernels: BTreeSet<_> = numbered
        .map(|(_, what)| what)
        .chain(resets.split_whitespace())
        .chain(caches.split_whitespace())
        .chain(disks.split_whitespace())
        .map(kernel_of)
        .collect();
    for name in kernels {
        let further;
        let kernel = if name == "stock" {
            rig.kernel()
        } else {
            further = rig.further_kernel(name).map_err(anyhow::Error::msg)?;
            &further
        };
        let image = std::fs::read(kernel.image()).context("read the kernel")?;
        payload = payload.file(&format!("{name}.vmlinuz"), &image).file(
            &format!("{name}.cpio"),
            &level2::initramfs(&kernel.modules()?)?,
        );
    }
    for node in level2::root_tree(witness)? {
        payload = match node {
            Node::Directory(path) => payload.directory(&format!("root/{path}")),
            Node::Program(path, content) => payload.file(&format!("root/{path}"), &content),
        };
    }
    Ok(payload)
}

/// Runs the payload on this machine if that can be, else in emulation; says which.
fn run(rig: &Rig, payload: &Payload) -> Result<Run> {
    match direct::lacks() {
        None => {
            println!("on the KVM of this machine");
            direct::run(payload, rig.dir(), "nested", DEADLINE)
        }
        Some(why) => {
            println!("in emulation: {why}");
            Level1::new(rig, payload)?
                .cpus(LEVEL1_CPUS)
                .run("nested", DEADLINE)
        }
    }
}

#[test]
fn distribution_kernels_move_there_and_back_lose_nothing_and_reset_in_every_way() {
    let rig = match Rig::find() {
        Ok(rig) => rig,
        Err(reason) => skip!("{reason}"),
    };
    let scenarios = std::env::var(SCENARIOS_VARIABLE).unwrap_or_else(|_| usual_scenarios(&rig));
    let scenarios = numbered(&scenarios);
    let resets = std::env::var(RESETS_VARIABLE).unwrap_or_else(|_| usual_resets());
    let caches = std::env::var(CACHES_VARIABLE).unwrap_or_else(|_| CACHES.to_owned());
    let disks = match std::env::var(DISKS_VARIABLE) {
        Ok(all) if all == "all" => all_disks(),
        Ok(named) => named,
        Err(_) => usual_disks(),
    };
    let payload = payload(&rig, &scenarios, &resets, &caches, &disks).unwrap();
    let run = run(&rig, &payload).unwrap();
    for line in run.lines_after("scenario: ") {
        println!("{line}");
    }
    assert_eq!(
        run.code,
        0,
        "with a CPU for {:.0} % of the time, log {}, its end:\n{}",
        run.cpu_share * 100.0,
        run.log_file.display(),
        run.tail()
    );
    for name in &scenarios {
        Outcome::from_log(name, &run).check();
    }
    let reset = run.lines_after("scenario: reset ").count();
    assert_eq!(reset, resets.split_whitespace().count());
    for told in run.lines_after("cache: ") {
        check_cache(told, CACHED_MIB << 20);
    }
    let cached = run.lines_after("cache: ").count();
    assert_eq!(cached, caches.split_whitespace().count());
    for told in run.lines_after("disk: ") {
        check_disk(told, COLD_MIB << 20);
    }
    if run.lines_after("unmarked: ").next().is_some() {
        let why = "no loop device for a file system whose images can be marked";
        println!("{}", skip::line(format_args!("{why}")));
    }
    let travelled = run.lines_after("disk: ").count();
    assert_eq!(travelled, 2 * disks.split_whitespace().count());
}
