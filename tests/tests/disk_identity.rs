//! A guest goes on over its own disk, or stays where it is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::blackbox::storage::{self, Loop, qemu_program};
use tests::blackbox::wait::{eventually, holds};
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock, images};
use tests::{Host, skip};

/// What a host is taken for, so that two of this machine pass for two machines.
const BOOT_ID: &str = "VMM_DEBUG_BOOT_ID";
const SIZE: u64 = 16 << 20;
const LISTEN: &str = "127.0.0.1:0";

fn host() -> Host {
    Host::new().unwrap_or_else(|e| panic!("{e:#}"))
}

/// Two hosts that are not on one machine, as far as they can tell.
fn two_machines() -> Pair {
    Pair::of(host().with(BOOT_ID, "one"), host().with(BOOT_ID, "another"))
}

fn image(pair: &Pair, name: &str) -> PathBuf {
    images::sparse(pair.source.path(), name, SIZE)
}

/// Tries to move `guest` to a destination that has its disk at `path`.
#[track_caller]
fn refused(pair: &Pair, vm: &str, path: Option<&Path>, more: &[&str], phase: &str) -> String {
    let disk = path.map(|path| format!("data={}", path.display()));
    let arguments: Vec<&str> = disk.iter().flat_map(|disk| ["--disk", disk]).collect();
    let address = pair.destination.receive_with(vm, LISTEN, &arguments);
    let ended = Migration::start(&pair.source, "guest", &address, more).finish();
    let why = ended.ended(1, "failed");
    let mut reached = ended
        .events
        .iter()
        .filter_map(|event| event["phase"].as_str());
    assert_eq!(reached.next_back(), Some(phase), "{:#}", ended.report);
    assert_eq!(pair.source.status("guest")["state"], "running");
    // It may have ended by itself.
    let _ = pair.destination.vmm(["stop", vm, "--force"]);
    why
}

/// The guest writes blocks and finds all of them again.
#[track_caller]
fn verifies_blocks(console: &mut Console) {
    let before = console.last("blocks_verified").unwrap_or(0);
    eventually("the guest verifies its blocks", || {
        (console.last("blocks_verified")? > before + 20).then_some(())
    });
    console.verifies_ledger();
}

fn moves(pair: &Pair, path: Option<&Path>, console: &mut Console) -> Value {
    let disk = path.map(|path| format!("data={}", path.display()));
    let arguments: Vec<&str> = disk.iter().flat_map(|disk| ["--disk", disk]).collect();
    let address = pair.destination.receive_with("moved", LISTEN, &arguments);
    let ended = Migration::start(&pair.source, "guest", &address, &[]).finish();
    let report = ended.completed();
    console.moves_to(&pair.destination, "moved");
    verifies_blocks(console);
    report
}

#[test]
fn another_image_of_the_same_size_is_refused_while_it_is_negotiated() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair, "data.raw");
    let other = image(&pair, "other.raw");
    let mut console = pair.source.run("guest", &Guest::idle().disk(&disk));
    let inode = |path: &Path| format!("inode {}", fs::metadata(path).expect("image").ino());
    let (guests, others) = (inode(&disk), inode(&other));

    // A wrong path; also where it is only asked whether it would work.
    for more in [&["--plan"][..], &[]] {
        let why = refused(&pair, "wrong", Some(&other), more, "negotiate");
        for word in ["other.raw", "not the guest's", &guests, &others] {
            assert!(why.contains(word), "{word} is missing in {why}");
        }
    }

    // The image of another guest, which has an owner.
    let _another = pair.source.run("another", &Guest::small().disk(&other));
    refused(&pair, "used", Some(&other), &[], "negotiate");
    pair.source.stop("another");

    // Replaced by rename while the guest runs.
    let kept = pair.source.path().join("kept.raw");
    fs::rename(&disk, &kept).expect("rename");
    storage::copy(&kept, disk.clone());
    let why = refused(&pair, "replaced", None, &[], "negotiate");
    assert!(why.contains(&guests), "{why}");

    moves(&pair, Some(&kept), &mut console);
    pair.source.is_clean();
}

#[test]
fn a_local_copy_in_place_of_a_share_is_refused_and_the_share_is_not() {
    let Some(_lock) = guest_lock() else { return };
    let pair = two_machines();
    let disk = image(&pair, "data.raw");
    let mut console = pair.source.run("guest", &Guest::idle().disk(&disk));
    verifies_blocks(&mut console);
    let copy = storage::copy(&disk, pair.destination.path().join("data.raw"));
    let why = refused(&pair, "copied", Some(&copy), &[], "negotiate");
    assert!(why.contains("nobody uses this one"), "{why}");
    // Whose locks travel: the owner is seen from the other machine.
    moves(&pair, Some(&disk), &mut console);
}

#[test]
fn a_device_of_another_machine_is_told_by_what_it_holds() {
    let Some(_lock) = guest_lock() else { return };
    let pair = two_machines();
    let disk = image(&pair, "data.raw");
    let [here, there] = [Loop::over(&disk), Loop::over(&disk)];
    let (here, there) = match (here, there) {
        (Ok(here), Ok(there)) => (here, there),
        (Err(why), _) | (_, Err(why)) => skip!("{why}"),
    };
    // As a disk of a storage network: one that shows nobody what is below.
    fs::remove_file(&disk).expect("unlink");
    let mut console = pair.source.run("guest", &Guest::idle().disk(here.path()));
    verifies_blocks(&mut console);
    let copy = storage::copy(here.path(), pair.destination.path().join("copy.raw"));
    let copied = match Loop::over(&copy) {
        Ok(copied) => copied,
        Err(why) => skip!("{why}"),
    };
    verifies_blocks(&mut console);
    let why = refused(&pair, "copied", Some(copied.path()), &[], "ready");
    assert!(why.contains("is a copy, not the guest's: at byte"), "{why}");
    verifies_blocks(&mut console);
    let report = moves(&pair, Some(there.path()), &mut console);
    assert_eq!(report["verified"], true, "{report:#}");
    pair.destination.stop("moved");
    pair.is_clean();
}

/// Whether process `pid` reads the image at `path` past the page cache; `None` where it has it not open.
fn reads_directly(pid: u32, path: &Path) -> Option<bool> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let open = open
        .flatten()
        .find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))?;
    let info = format!("/proc/{pid}/fdinfo/{}", open.file_name().display());
    let info = fs::read_to_string(info).expect("descriptor");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
    Some(flags & libc::O_DIRECT != 0)
}

#[test]
fn a_destination_reads_past_its_page_cache_until_the_guest_is_there() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair, "data.raw");
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&disk);
    if let Err(why) = open {
        skip!("the file system of temporary files has no direct reads: {why}");
    }
    let mut console = pair.source.run("guest", &Guest::slow_to_move().disk(&disk));
    let address = pair.destination.receive("moved", LISTEN);
    let limited = ["--bandwidth", "8MiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &limited);
    migration.wait_phase("precopy");
    let destination = pair.destination.pid("moved");
    assert_eq!(reads_directly(destination, &disk), Some(true));
    let source = pair.source.pid("guest");
    assert_eq!(reads_directly(source, &disk), Some(false));
    let unlimited = ["migrate", "guest", "--set", "bandwidth=10GiB/s"];
    let _ = pair.source.vmm(unlimited).success();
    migration.finish().completed();
    console.moves_to(&pair.destination, "moved");
    assert_eq!(reads_directly(destination, &disk), Some(false));
    verifies_blocks(&mut console);
}

/// Whether somebody else gets hold of a block device.
fn gets_hold(device: &Path) -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device);
    opened.is_ok()
}

#[test]
fn a_block_device_is_held_without_a_gap_and_by_one_guest_alone() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair, "data.raw");
    let device = match Loop::over(&disk) {
        Ok(device) => device,
        Err(why) => skip!("{why}"),
    };
    let mut console = pair.source.run("guest", &Guest::idle().disk(device.path()));
    assert!(!gets_hold(device.path()));
    // By a second node, whose locks are others.
    let node = pair.source.path().join("node");
    let number = fs::metadata(device.path()).expect("device").rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let made = Command::new("mknod")
        .arg(&node)
        .args(["b", &major.to_string(), &minor.to_string()])
        .status();
    assert!(made.is_ok_and(|status| status.success()), "mknod");
    // And by the file below, in both cases.
    for path in [&node, &disk] {
        let run = pair
            .destination
            .vmm(Guest::idle().disk(path).run_args("intruder"));
        fails(run, 1, &["in use"]);
    }
    let (done, tries) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let intruder = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(!gets_hold(device.path()), "the device was let go of");
                tries.fetch_add(1, Ordering::Relaxed);
                // Leaves some of the processor to the guest.
                thread::sleep(Duration::from_micros(200));
            }
        });
        let report = moves(&pair, None, &mut console);
        assert!(
            report["warnings"].as_array().is_none_or(Vec::is_empty),
            "{report:#}"
        );
        pair.source.is_clean();
        let before = tries.load(Ordering::Relaxed);
        holds("the intruder tries", || {
            tries.load(Ordering::Relaxed) > before
        });
        done.store(true, Ordering::Relaxed);
        intruder.join().expect("intruder");
    });
    pair.destination.stop("moved");
    holds("the device is free", || gets_hold(device.path()));
    // Whoever has it mounted keeps guests off.
    let _held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device.path())
        .expect("device");
    let run = pair
        .source
        .vmm(Guest::idle().disk(device.path()).run_args("late"));
    fails(run, 1, &["is mounted, or held by another program"]);
    pair.is_clean();
}

#[test]
fn qemu_and_guests_keep_each_other_out() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair, "data.raw");
    let Some(_) = qemu_program("qemu-img").and(qemu_program("qemu-io")) else {
        skip!("qemu-img and qemu-io are neither unpacked nor installed");
    };
    let out = pair.source.path().join("out.raw");
    let gets_in = |program: &mut Command| {
        let output = program.output().expect("QEMU's program");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || why.contains("lock"), "{why}");
        output.status.success()
    };
    let reader_gets_in = || {
        let mut reader = qemu_program("qemu-img").expect("qemu-img");
        gets_in(reader.args(["convert", "-f", "raw"]).arg(&disk).arg(&out))
    };
    let writer_gets_in = || {
        let mut writer = qemu_program("qemu-io").expect("qemu-io");
        gets_in(writer.args(["-f", "raw", "-c", "quit"]).arg(&disk))
    };
    let qemu_gets_in = || reader_gets_in() || writer_gets_in();
    assert!(reader_gets_in() && writer_gets_in());
    let mut console = pair.source.run("guest", &Guest::idle().disk(&disk));
    assert!(!qemu_gets_in());
    let (done, tries) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let intruder = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(!qemu_gets_in(), "QEMU got in");
                tries.fetch_add(1, Ordering::Relaxed);
            }
        });
        moves(&pair, None, &mut console);
        pair.source.is_clean();
        let before = tries.load(Ordering::Relaxed);
        holds("QEMU tries", || tries.load(Ordering::Relaxed) > before + 1);
        done.store(true, Ordering::Relaxed);
        intruder.join().expect("intruder");
    });
    pair.destination.stop("moved");
    holds("the image is free", || reader_gets_in() && writer_gets_in());

    let mut qemu = qemu_program("qemu-io").expect("qemu-io");
    let mut qemu = qemu
        .args(["-f", "raw"])
        .arg(&disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-io");
    holds("qemu-io has the image", || !reader_gets_in());
    let run = pair.source.vmm(Guest::idle().disk(&disk).run_args("late"));
    // It reads commands until there are none.
    drop(qemu.stdin.take());
    let ended = qemu.wait();
    fails(run, 1, &["data.raw", "is in use by QEMU"]);
    assert!(ended.is_ok_and(|status| status.success()));
    pair.is_clean();
}
