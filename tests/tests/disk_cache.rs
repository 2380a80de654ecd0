//! A disk past the page cache of its host: who serves it, also where the kernel has no io_uring, and that it moves.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tests::blackbox::moving_disk::move_args;
use tests::blackbox::storage::Loop;
use tests::blackbox::wait::{PATIENCE, eventually};
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock, images};
use tests::{kernel, skip};

const LOAD: &str = "block=verify,size=4M block_rate=200";

/// Names of the threads of a process.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    tasks
        .filter_map(|task| name(task.ok()?).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[track_caller]
fn goes_on_verifying(console: &mut Console) {
    let before = console.last("blocks_verified").unwrap_or(0);
    eventually("the guest verifies its blocks", || {
        (console.last("blocks_verified")? > before).then_some(())
    });
    console.verifies_ledger();
}

fn guest(disk: &Path) -> Guest {
    Guest::slow_to_move().disk_with(disk, "id=data,cache=none", LOAD)
}

#[test]
fn a_ring_serves_it_in_the_strict_sandbox_and_where_it_moves_to() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let files = Pair::new();
    let disk = images::sparse(files.source.path(), "data.raw", 16 << 20);
    let (a, b) = (&pair.source, &pair.destination);
    let strict = ["--sandbox".to_owned(), "strict".to_owned()];
    let mut args = guest(&disk).cpus(2).run_args("guest");
    args.extend(strict);
    let _ = a.vmm(args).success();
    let mut console = Console::of(a, "guest");
    console.wait_ready();
    goes_on_verifying(&mut console);
    let names = threads(a.pid("guest"));
    if !names.iter().any(|name| name == "disk-ring") {
        let log = fs::read_to_string(a.runtime_dir().join("guest/vmm.log")).expect("log");
        assert!(log.contains("no io_uring"), "{names:?} {log}");
        println!("skipped: this host has no io_uring");
        return;
    }
    for step in ["pause", "resume"] {
        let _ = a.vmm([step, "guest"]).success();
    }
    goes_on_verifying(&mut console);
    let place = format!("data={},cache=none", disk.display());
    let more = ["--sandbox", "strict", "--disk", &place];
    // There, and back to where it goes through the page cache.
    let address = b.receive_with("guest", "127.0.0.1:0", &more);
    Migration::start(a, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(b, "guest");
    goes_on_verifying(&mut console);
    let names = threads(b.pid("guest"));
    assert!(names.iter().any(|name| name == "disk-ring"), "{names:?}");
    a.is_clean();
    let address = a.receive("guest", "127.0.0.1:0");
    Migration::start(b, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(a, "guest");
    goes_on_verifying(&mut console);
    let names = threads(a.pid("guest"));
    assert!(!names.iter().any(|name| name == "disk-ring"), "{names:?}");
    a.stop("guest");
    pair.is_clean();
}

#[test]
fn it_travels_with_its_guest_and_its_ring_marks_what_changes() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let (a, b) = (&pair.source, &pair.destination);
    let disk = images::sparse(a.path(), "data.raw", 64 << 20);
    let mut args = guest(&disk).run_args("guest");
    args.extend(["--sandbox".to_owned(), "strict".to_owned()]);
    let _ = a.vmm(args).success();
    let mut console = Console::of(a, "guest");
    console.wait_ready();
    goes_on_verifying(&mut console);
    let source = a.pid("guest");
    if !threads(source).iter().any(|name| name == "disk-ring") {
        println!("skipped: this host has no io_uring");
        return;
    }
    let there = b.path().join("there.raw");
    let place = format!("data={},create,cache=none", there.display());
    let address = b.receive_with("guest", "127.0.0.1:0", &["--disk", &place]);
    let slow = ["--disks", "precopy", "--bandwidth", "8MiB/s"];
    let mut migration = Migration::start(a, "guest", &address, &slow);
    migration.wait_progress();
    // No threads have taken the place of the ring.
    let names = threads(source);
    assert!(names.iter().any(|name| name == "disk-ring"), "{names:?}");
    assert!(!names.iter().any(|name| name == "disk-0"), "{names:?}");
    let _ = a
        .vmm(["migrate", "guest", "--set", "bandwidth=10GiB/s"])
        .success();
    migration.finish().completed();
    console.moves_to(b, "guest");
    goes_on_verifying(&mut console);
    let names = threads(b.pid("guest"));
    assert!(names.iter().any(|name| name == "disk-ring"), "{names:?}");
    b.stop("guest");
    pair.is_clean();
}

/// Bytes of a file that the page cache has, if a program here tells.
fn cached(path: &Path) -> Option<u64> {
    let mut fincore = Command::new("fincore");
    fincore.args(["--noheadings", "--bytes", "--output", "RES"]);
    let output = fincore.arg(path).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[test]
fn it_moves_on_its_host_and_stays_past_the_page_cache_whatever_blocks_its_storage_takes() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let disk = images::sparse(host.path(), "data.raw", 16 << 20);
    let content = OpenOptions::new().write(true).open(&disk).expect("image");
    content
        .write_all_at(&[0xc7; 8 << 20], 8 << 20)
        .expect("content");
    let mut args = guest(&disk).run_args("guest");
    args.extend(["--sandbox".to_owned(), "strict".to_owned()]);
    let _ = host.vmm(args).success();
    let mut console = Console::of(host, "guest");
    console.wait_ready();
    goes_on_verifying(&mut console);
    let container = host.path().join("there.qcow2");
    let args = move_args("guest:data", &container, &["--format", "qcow2"]);
    fails(host.vmm(args), 1, &["cache=none", "qcow2"]);
    assert!(!container.exists());

    let there = host.path().join("there.raw");
    for (to, more) in [
        (&there, &[][..]),
        (&disk, &["--existing", "--mode", "mirror"]),
    ] {
        let _ = host.vmm(move_args("guest:data", to, more)).success();
        goes_on_verifying(&mut console);
        // A request may be on its way through it that the storage could not take.
        assert!(cached(to).is_none_or(|bytes| bytes < 1 << 20), "{to:?}");
    }
    let blocks = images::sparse(host.path(), "blocks.img", 16 << 20);
    match Loop::of_blocks(&blocks, 4096) {
        Ok(device) => {
            let args = move_args("guest:data", device.path(), &["--existing"]);
            let _ = host.vmm(args).success();
            goes_on_verifying(&mut console);
            host.stop("guest");
        }
        Err(why) => {
            println!("{}", skip::line(format_args!("{why}")));
            host.stop("guest");
        }
    }
    pair.is_clean();
}

#[test]
fn a_host_without_io_uring_serves_it_by_threads_and_says_so_once() {
    let Some(_lock) = guest_lock() else { return };
    // An old kernel, and one on which the administrator has switched it off.
    for errno in [libc::ENOSYS, libc::EPERM] {
        let pair = Pair::new();
        let host = &pair.source;
        let disk = images::sparse(host.path(), "data.raw", 16 << 20);
        let other = images::sparse(host.path(), "other.raw", 16 << 20);
        let guest = guest(&disk).disk_with(&other, "id=other,cache=none", "");
        let command = host.command(guest.run_args("guest"));
        let command = kernel::without(libc::SYS_io_uring_setup, errno, command);
        let run = host.start(command).finish(PATIENCE);
        let _ = run.unwrap_or_else(|e| panic!("{e:#}")).success();
        let mut console = Console::of(host, "guest");
        console.wait_ready();
        goes_on_verifying(&mut console);
        let names = threads(host.pid("guest"));
        assert!(names.iter().any(|name| name == "disk-0"), "{names:?}");
        assert!(!names.iter().any(|name| name == "disk-ring"), "{names:?}");
        let log = fs::read_to_string(host.runtime_dir().join("guest/vmm.log")).expect("log");
        assert_eq!(log.matches("no io_uring").count(), 1, "{log}");
        host.stop("guest");
        pair.is_clean();
    }
}

#[test]
fn what_cannot_do_without_the_page_cache_is_refused_by_name() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let disk = images::sparse(host.path(), "data.raw", 16 << 20);
    let path = disk.display().to_string();
    let run = |options: &str| host.vmm(["run", "--disk", &format!("{path},{options}")]);
    let unknown = run("cache=directsync").expect_code(2);
    assert!(
        unknown.stderr.contains("directsync") && unknown.stderr.contains("writeback"),
        "{unknown}"
    );
    fails(run("format=qcow2,cache=none"), 2, &["cache=none", "raw"]);
}
