//! Disks that move to block devices and from there, under a guest that goes on.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::Host;
use tests::blackbox::leftovers::open_files;
use tests::blackbox::moving_disk::{Load, SIZE, SLOW, Scene, VERIFY, holds_its_content, move_args};
use tests::blackbox::storage::Loop;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Migration, Pair, Vms, guest_lock, holds, images};
use tests::skip;

const EXISTING: &[&str] = &["--existing"];
const MIRROR: &[&str] = &["--existing", "--mode", "mirror"];

/// What a device begins with that is not whole.
const SEALED: &[u8] = b"vmm: a disk was being moved";

/// A block device of `size` that is full of something.
fn device(host: &Host, name: &str, size: u64) -> Result<Loop, String> {
    let file = images::sparse(host.path(), name, size);
    let content = OpenOptions::new().write(true).open(&file).expect("file");
    for piece in 0..size >> 20 {
        let at = piece << 20;
        content.write_all_at(&[0xee; 1 << 20], at).expect("content");
    }
    Loop::over(&file)
}

/// The devices that a process has open.
fn devices_open(pid: u32) -> Vec<PathBuf> {
    let is_device =
        |path: &PathBuf| path.starts_with("/dev") && path.to_string_lossy().contains("loop");
    let mut open: Vec<_> = open_files(pid).into_iter().filter(is_device).collect();
    open.sort();
    open.dedup();
    open
}

/// Whether somebody else can open a device so that nobody uses it beside.
fn is_free(device: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_EXCL);
    options.open(device).is_ok()
}

/// What a device begins with.
fn beginning(device: &Path) -> [u8; 64] {
    let mut bytes = [0; 64];
    let file = File::open(device).expect("device");
    file.read_exact_at(&mut bytes, 0).expect("device");
    bytes
}

#[track_caller]
fn is_at(scene: &Scene, path: &Path) {
    let status = scene.host().status("guest");
    assert_eq!(
        status["disks"][0]["path"],
        path.display().to_string(),
        "{status:#}"
    );
}

#[test]
fn a_disk_moves_to_a_device_and_to_another_and_back_and_nothing_of_the_one_before_is_open() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let made = ["one", "two"].map(|name| device(scene.host(), name, SIZE));
    let [one, two] = match made {
        [Ok(one), Ok(two)] => [one, two],
        [Err(why), _] | [_, Err(why)] => skip!("{why}"),
    };
    let pid = scene.host().pid("guest");
    let first = scene.disk.clone();
    let _ = scene.moves(one.path(), EXISTING);
    scene.goes_on();
    is_at(&scene, one.path());
    assert_eq!(devices_open(pid), [one.path()]);
    assert!(!is_free(one.path()), "nobody is kept from mounting it");
    scene.is_refused(&first, "the disk was moved to");
    scene.is_refused(one.path(), "in use");

    let job = scene.moves(two.path(), MIRROR);
    assert_eq!(job["result"]["disk_move"]["mode"], "mirror", "{job:#}");
    scene.goes_on();
    assert_eq!(devices_open(pid), [two.path()]);
    assert!(is_free(one.path()) && !is_free(two.path()));

    let back = scene.path("back.qcow2");
    let _ = scene.moves(&back, &["--format", "qcow2"]);
    scene.goes_on();
    scene.is_at(&back);
    assert!(is_free(two.path()));
    // Over what it left, and it ends there.
    let _ = scene.moves(one.path(), MIRROR);
    scene.goes_on();
    scene.host().stop("guest");
    holds_its_content(one.path());
    scene.starts_anew_from(one.path());
    scene.pair.is_clean();
}

#[test]
fn whatever_ends_a_move_early_the_device_is_no_disk_and_the_next_move_works_at_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let there = match device(scene.host(), "there", SIZE) {
        Ok(there) => there,
        Err(why) => skip!("{why}"),
    };
    let (first, path) = (scene.disk.clone(), there.path().to_owned());
    for mode in [EXISTING, MIRROR] {
        let slow = [mode, SLOW].concat();
        let (running, id) = scene.begins(&path, &slow);
        // What the guest writes does not reach the beginning, and nobody takes it for a disk.
        assert!(beginning(&path).starts_with(SEALED));
        let _ = scene.disk_jobs(&["--cancel", &id]);
        let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
        assert!(is_free(&path));
        scene.is_refused(&path, "a disk was being moved to it");
        scene.is_at(&first);
        scene.goes_on();

        let (mut running, _) = scene.begins(&path, &slow);
        running.kill();
        scene.host().crash("guest");
        scene.is_run_again_from(&first);
        scene.is_refused(&path, "a disk was being moved to it");
    }
    let _ = scene.moves(&path, EXISTING);
    scene.goes_on();
    // The guest is killed where it is by now.
    scene.host().crash("guest");
    scene.is_run_again_from(&path);
    scene.is_refused(&first, "the disk was moved to");
    scene.host().stop("guest");
    holds_its_content(&path);
    scene.host().is_swept();
}

#[test]
fn what_cannot_be_done_with_devices_is_refused_by_name_and_leaves_them_as_they_are() {
    let Some(_lock) = guest_lock() else { return };
    let scene = Scene::with(&Guest::idle(), VERIFY);
    let made = [("there", SIZE), ("small", SIZE - 512)]
        .map(|(name, size)| device(scene.host(), name, size));
    let [there, small] = match made {
        [Ok(there), Ok(small)] => [there, small],
        [Err(why), _] | [_, Err(why)] => skip!("{why}"),
    };
    let (here, small) = (there.path(), small.path());
    let cases: [(&Path, &[&str], i32, &str); 6] = [
        (here, &[], 1, "--existing"),
        (small, EXISTING, 1, "67108864 bytes, and"),
        (small, EXISTING, 1, "67108352"),
        (
            here,
            &["--existing", "--mode", "snapshot"],
            2,
            "--mode mirror",
        ),
        (here, &["--mode", "on-demand"], 2, "--mode mirror"),
        (
            here,
            &["--existing", "--format", "qcow2"],
            2,
            "--format raw",
        ),
    ];
    for (to, more, code, why) in cases {
        let said = scene
            .host()
            .vmm(move_args("guest:data", to, more))
            .expect_code(code);
        assert!(said.stderr.contains(why), "{more:?}: {said}");
    }
    // Somebody else has it.
    let held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(here)
        .expect("device");
    let said = scene
        .host()
        .vmm(move_args("guest:data", here, EXISTING))
        .expect_code(1)
        .stderr;
    assert!(said.contains("mounted, or held"), "{said}");
    drop(held);
    assert_eq!(beginning(here), [0xee; 64]);
    scene.host().stop("guest");
    scene.pair.is_clean();
}

/// The figures of moves of a disk under a load that is judged, from device to device.
#[test]
fn no_write_is_lost_of_a_load_at_depth_16_while_its_disk_moves_between_devices() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let size = 32 << 20;
    let made = ["one", "two"].map(|name| device(host, name, size));
    let [one, two] = match made {
        [Ok(one), Ok(two)] => [one, two],
        [Err(why), _] | [_, Err(why)] => skip!("{why}"),
    };
    let load = "depth=16,start=fill,length=12M,read=30,verify=10,discard=10,zeroes=10,size=4K/16K/64K,flush=16,\
                interval_ms=100,count=6000";
    let first = images::sparse(host.path(), "data.raw", size);
    let guest = Guest::dirtying().memory("192MiB").disk_load(&first, load);
    let mut load = Load::on(host.run("guest", &guest));
    let mut written = 0;
    for (to, mode) in [(&one, MIRROR), (&two, EXISTING), (&one, MIRROR)] {
        let more = [mode, &["--downtime-limit", "5s"]].concat();
        let run = host
            .vmm(move_args("guest:data", to.path(), &more))
            .success();
        let job: Value = run.json_lines().pop().expect("a job");
        written += job["result"]["disk_move"]["class_bytes"]["write"]
            .as_u64()
            .expect("bytes");
    }
    assert!(written > 0, "nothing was mirrored");
    load.comes_to_its_end();
    host.press("guest", b'q');
    host.ended("guest");
    load.has_lost_nothing_at(one.path());
    pair.is_clean();
}

#[test]
fn a_guest_leaves_the_device_that_its_disk_has_moved_to_and_travels_to_another() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let made = ["one", "two"].map(|name| device(scene.host(), name, SIZE));
    let [one, two] = match made {
        [Ok(one), Ok(two)] => [one, two],
        [Err(why), _] | [_, Err(why)] => skip!("{why}"),
    };
    let _ = scene.moves(one.path(), EXISTING);
    // As it is, to a process on the same host, which the hold cannot be passed to.
    let address = scene.pair.destination.receive("there", "127.0.0.1:0");
    let report = Migration::start(scene.host(), "guest", &address, &[])
        .finish()
        .completed();
    assert!(report.to_string().contains("disk.hold"), "{report:#}");
    scene.console.moves_to(&scene.pair.destination, "there");
    scene.goes_on();
    // And with its content, to a device that is full of something; the first time it does not come.
    let place = format!("data={},existing", two.path().display());
    let (a, b) = (&scene.pair.source, &scene.pair.destination);
    let receive = || a.receive_with("guest", "127.0.0.1:0", &["--disk", &place]);
    let slow = ["--disks", "precopy", "--bandwidth", "8MiB/s"];
    let mut cancelled = Migration::start(b, "there", &receive(), &slow);
    cancelled.wait_progress();
    assert!(beginning(two.path()).starts_with(SEALED));
    let _ = b.vmm(["migrate", "there", "--cancel"]).success();
    let _ = cancelled.finish();
    holds("the device is let go", || is_free(two.path()));
    scene.is_refused(two.path(), "for a guest that did not come");
    let _ = Migration::start(b, "there", &receive(), &["--disks", "mirror"])
        .finish()
        .completed();
    scene.console.moves_to(a, "guest");
    scene.goes_on();
    assert!(is_free(one.path()) && !is_free(two.path()));
    scene.host().stop("guest");
    holds_its_content(two.path());
    scene.starts_anew_from(two.path());
    scene.pair.is_clean();
}
