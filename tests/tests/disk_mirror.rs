//! Disks that are mirrored to other images on their host, under a guest that writes as fast as it can.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use tests::blackbox::moving_disk::{Load, SLOW, Scene, holds_its_content, move_args};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Mounted, Pair, Vms, guest_lock, holds, images};
use tests::skip;

const MIRROR: &[&str] = &["--mode", "mirror"];
/// Writes without end to a region of the disk, of which a part is flushed.
const BUSY: &str = "depth=16,start=fill,read=10,verify=5,discard=5,zeroes=5,size=4K/16K/64K,flush=64,interval_ms=100";

fn with<'a>(all: &[&[&'a str]]) -> Vec<&'a str> {
    all.concat()
}

#[test]
fn a_disk_is_mirrored_from_format_to_format_and_nothing_of_the_old_image_is_open() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, second, third) = (
        scene.disk.clone(),
        scene.path("second.qcow2"),
        scene.path("third.raw"),
    );
    let job = scene.moves(&second, &with(&[MIRROR, SLOW, &["--format", "qcow2"]]));
    let report = &job["result"]["disk_move"];
    assert_eq!(report["mode"], "mirror", "{job:#}");
    let class = |name: &str| report["class_bytes"][name].as_u64().expect("bytes");
    assert!(class("background") >= 24 << 20, "{job:#}");
    assert!(class("write") > 0, "{job:#}");
    assert_eq!(
        job["disks"][0]["class_bytes"], report["class_bytes"],
        "{job:#}"
    );
    assert_eq!(report["last_bytes"], 0, "{job:#}");
    scene.goes_on();
    scene.is_at(&second);
    scene.is_refused(&first, "the disk was moved to");
    let more = with(&[MIRROR, &["--format", "raw", "--after", "delete"]]);
    let _ = scene.moves(&third, &more);
    scene.goes_on();
    scene.is_at(&third);
    assert!(first.exists() && !second.exists());
    // Over what is there, which holds other bytes than the disk by now.
    let _ = scene.moves(&first, &with(&[MIRROR, &["--existing"]]));
    scene.goes_on();
    scene.is_at(&first);
    scene.host().stop("guest");
    holds_its_content(&first);
    scene.starts_anew_from(&first);
    scene.pair.is_clean();
}

/// The disk of a guest under a load that never rests moves, and holds all that was written; the figures of that.
fn busy_disk_moves(region: &str, more: &[&str]) -> Value {
    let pair = Pair::new();
    let host = &pair.source;
    let first = images::sparse(host.path(), "data.raw", 96 << 20);
    let load = format!("{BUSY},length={region}");
    let guest = Guest::dirtying().memory("192MiB").disk_load(&first, &load);
    let mut load = Load::on(host.run("guest", &guest));
    let to = host.path().join("there.raw");
    let run = host.vmm(move_args("guest:data", &to, more)).success();
    let job = run.json_lines().pop().expect("a job");
    assert_eq!(job["result"]["outcome"], "completed", "{job:#}");
    load.goes_on(100);
    host.press("guest", b'q');
    host.ended("guest");
    load.comes_to_its_end();
    load.has_lost_nothing_at(&to);
    pair.is_clean();
    job["result"]["disk_move"].clone()
}

#[test]
fn no_write_is_lost_of_a_load_that_never_rests_while_its_disk_is_mirrored() {
    let Some(_lock) = guest_lock() else { return };
    let report = busy_disk_moves("12M", &with(&[MIRROR, SLOW]));
    assert!(
        report["class_bytes"]["write"].as_u64() > Some(0),
        "{report:#}"
    );
}

#[test]
fn a_disk_that_is_written_faster_than_passes_copy_it_goes_on_by_a_mirror_from_there() {
    let Some(_lock) = guest_lock() else { return };
    // More than can be copied while requests wait is written during each pass.
    let more = ["--bandwidth", "32MiB/s", "--on-not-converging", "mirror"];
    let report = busy_disk_moves("64M", &more);
    assert_eq!(report["mode"], "mirror", "{report:#}");
    assert!(report["passes"].as_u64() > Some(2), "{report:#}");
    assert!(
        report["class_bytes"]["write"].as_u64() > Some(0),
        "{report:#}"
    );
}

#[test]
fn whatever_ends_a_mirror_early_leaves_the_old_image_whole_and_the_next_one_works_at_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));
    let slow = with(&[MIRROR, SLOW]);

    let slower = with(&[MIRROR, &["--bandwidth", "1MiB/s"]]);
    let (running, id) = scene.begins(&there, &slower);
    holds("it is told how fast each class goes", || {
        let rate = &scene.job(&id)["disks"][0]["class_bytes_per_s"];
        let goes = |class: &str| rate[class].as_u64() > Some(0);
        goes("write") && goes("background")
    });
    let told = scene.disk_jobs(&["--pause", &id]);
    assert_eq!(told[0]["state"], "paused", "{told:?}");
    scene.goes_on();
    let _ = scene.disk_jobs(&["--cancel", &id]);
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
    assert!(!there.exists(), "a part of the disk is left");
    assert_eq!(scene.job(&id)["result"]["outcome"], "cancelled");
    scene.is_at(&first);
    scene.goes_on();

    let (running, _) = scene.begins(&there, &slow);
    scene.host().crash("guest");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(!there.exists(), "a part of the disk is left");
    let guest =
        Guest::dirtying().disk_with(&first, "id=data", "block=check,size=8M block_rate=400");
    scene.console = scene.host().run("guest", &guest);
    scene.console.verifies_blocks();

    let (mut running, _) = scene.begins(&there, &slow);
    running.kill();
    scene.host().crash("guest");
    scene.is_refused(&there, "a disk was being moved to it");
    scene.console = scene.host().run("guest", &guest);
    let _ = scene.moves(&there, MIRROR);
    scene.is_at(&there);
    scene.goes_on();
    scene.host().stop("guest");
    scene.starts_anew_from(&there);
    scene.host().is_swept();
}

/// Takes what is left of a file system of `size` bytes but for what `image` has of it.
fn fill(filler: &Path, size: u64, image: &Path) {
    let taken = fs::metadata(image).expect("image").blocks() * 512;
    let mut file = File::create(filler).expect("filler");
    let _full = io::copy(&mut io::Read::take(io::repeat(1), size - taken), &mut file);
}

#[test]
fn a_mirror_whose_target_fills_up_is_dropped_or_waits_as_told_and_the_guest_goes_on() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let small = match Mounted::at(scene.path("small"), "40M") {
        Ok(small) => small,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    let (first, there, filler) = (
        scene.disk.clone(),
        small.path().join("there.raw"),
        small.path().join("filler"),
    );
    let slow = with(&[MIRROR, SLOW]);

    let (running, id) = scene.begins(&there, &slow);
    fill(&filler, 40 << 20, &there);
    let said = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(said.stderr.contains("No space left"), "{said}");
    assert_eq!(scene.job(&id)["result"]["error"]["id"], "disk.no-room");
    assert!(!there.exists(), "a part of the disk is left");
    scene.is_at(&first);
    scene.goes_on();
    fs::remove_file(&filler).expect("filler");

    let stop = with(&[MIRROR, SLOW, &["--on-target-error", "stop"]]);
    let (running, id) = scene.begins(&there, &stop);
    fill(&filler, 40 << 20, &there);
    holds("it is paused", || scene.job(&id)["state"] == "paused");
    assert_eq!(scene.job(&id)["held_up_by"]["id"], "disk.no-room");
    scene.goes_on();
    // Told to go on, it stops again as long as there is no room.
    let _ = scene.disk_jobs(&["--resume", &id]);
    holds("it is paused again", || scene.job(&id)["state"] == "paused");
    fs::remove_file(&filler).expect("filler");
    let _ = scene.disk_jobs(&["--resume", &id]);
    let _ = running.finish(PATIENCE).expect("it ends").success();
    scene.is_at(&there);
    scene.goes_on();
    scene.host().stop("guest");
    scene.starts_anew_from(&there);
    drop(small);
    scene.pair.is_clean();
}
