//! Disks that move to other images on their host by way of overlays, under a guest that goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::blackbox::moving_disk::{SLOW, Scene, VERIFY, allocated, holds_its_content, move_args};
use tests::blackbox::storage::{Loop, qemu_program};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Mounted, Pair, Vms, eventually, guest_lock, holds, images};
use tests::blackbox::{disk_load, moving_load};
use tests::process::Process;
use tests::skip;

const SNAPSHOT: &[&str] = &["--mode", "snapshot"];
/// No rest fits, so that there is time to do something between two rounds.
const ENDLESS: &[&str] = &["--downtime-limit", "0ms"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [SNAPSHOT, more].concat()
}

fn hash(path: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(path).expect("image"))
}

/// Overlays that lie in a folder, or what is left of them.
fn overlays(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folder");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let mut found: Vec<_> = paths
        .filter(|path| path.to_string_lossy().contains("overlay"))
        .collect();
    found.sort();
    found
}

fn none_is_left(scene: &Scene) {
    assert_eq!(overlays(scene.host().path()), Vec::<PathBuf>::new());
}

/// The guest's disk is an overlay.
fn is_in_overlay(scene: &Scene) -> PathBuf {
    eventually("the disk goes on in an overlay", || {
        let status = scene.host().status("guest");
        let path = status["disks"][0]["path"].as_str()?.to_owned();
        path.contains("overlay").then(|| path.into())
    })
}

fn check(image: &Path) {
    let Some(mut qemu_img) = qemu_program("qemu-img") else {
        return;
    };
    let output = qemu_img.args(["check", "-q", "-f", "qcow2"]).arg(image);
    let output = output.output().expect("qemu-img");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {why}", image.display());
}

fn report(job: &Value) -> &Value {
    &job["result"]["disk_move"]
}

#[test]
fn a_disk_moves_by_way_of_overlays_from_format_to_format() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, second, third) = (
        scene.disk.clone(),
        scene.path("second.qcow2"),
        scene.path("third.raw"),
    );
    for (to, more) in [
        (&second, ["--format", "qcow2", "--overlay", "source"]),
        (&third, ["--format", "raw", "--overlay", "destination"]),
    ] {
        let job = scene.moves(to, &with(&more));
        let told = report(&job);
        let pauses = told["pauses_us"].as_array().expect("pauses");
        // To the first overlay, to the second, and to the image, at least; one between each two rounds.
        let rounds = told["rounds"].as_u64().expect("rounds") as usize;
        assert!(rounds >= 1 && pauses.len() >= rounds + 2, "{job:#}");
        scene.goes_on();
        scene.is_at(to);
        none_is_left(&scene);
    }
    scene.host().stop("guest");
    check(&second);
    holds_its_content(&third);
    scene.is_refused(&first, "the disk was moved to");
    scene.starts_anew_from(&third);
    scene.pair.is_clean();
}

#[test]
fn the_image_that_a_disk_had_never_changes_while_it_is_copied() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let slow = [SLOW, &["--format", "qcow2"]].concat();
    let (running, id) = scene.begins(&there, &with(&slow));
    let overlay = is_in_overlay(&scene);
    assert_eq!(overlays(scene.host().path()).len(), 3);
    let before = hash(&first);
    scene.goes_on();
    assert!(allocated(&overlay) > 0);
    assert!(hash(&first) == before, "it changed");
    let _ = scene.disk_jobs(&["--set", "bandwidth=unlimited", "--job", &id]);
    let _ = running.finish(PATIENCE).expect("it ends").success();
    assert!(hash(&first) == before, "it changed");
    scene.goes_on();
    scene.is_at(&there);
    none_is_left(&scene);
    scene.host().stop("guest");
    check(&there);
    scene.starts_anew_from(&there);
    scene.pair.is_clean();
}

#[test]
fn a_move_that_is_cancelled_brings_the_guest_back_with_what_it_wrote_meanwhile() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));
    let (running, id) = scene.begins(&there, &with(SLOW));
    let _ = is_in_overlay(&scene);
    scene.goes_on();
    let _ = scene.disk_jobs(&["--cancel", &id]);
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
    assert!(!there.exists(), "a part of the disk is left");
    none_is_left(&scene);
    scene.is_at(&first);
    scene.goes_on();
    let _ = scene.moves(&there, SNAPSHOT);
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    holds_its_content(&there);
    scene.starts_anew_from(&there);
    scene.pair.is_clean();
}

#[test]
fn a_disk_stays_in_its_overlay_over_the_new_image_if_it_is_to() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let more = ["--format", "qcow2", "--keep-chain", "--after", "delete"];
    let _ = scene.moves(&there, &with(&more));
    let overlay = is_in_overlay(&scene);
    assert_eq!(
        overlays(scene.host().path()),
        std::slice::from_ref(&overlay)
    );
    assert!(!first.exists());
    let below = hash(&there);
    scene.goes_on();
    assert!(hash(&there) == below, "it changed");
    // Another move brings it together.
    let last = scene.path("last.raw");
    let more = ["--format", "raw", "--after", "delete"];
    let _ = scene.moves(&last, &more);
    scene.goes_on();
    scene.is_at(&last);
    none_is_left(&scene);
    scene.host().stop("guest");
    check(&there);
    holds_its_content(&last);
    scene.starts_anew_from(&last);
    scene.pair.is_clean();
}

/// Kills the VM, and whoever follows the move.
fn kill_both(scene: &Scene, mut running: Process) {
    running.kill();
    scene.host().crash("guest");
}

#[test]
fn what_a_killed_client_leaves_of_a_move_goes_with_the_next_guest() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let there = scene.path("there.raw");
    let (mut running, id) = scene.begins(&there, &with(SLOW));
    let _ = is_in_overlay(&scene);
    running.kill();
    let _ = scene.disk_jobs(&["--set", "bandwidth=unlimited"]);
    holds("the move ends without its client", || {
        scene.job(&id)["state"] == "concluded"
    });
    scene.goes_on();
    scene.is_at(&there);
    assert!(!overlays(scene.host().path()).is_empty(), "nobody left any");
    // A file of somebody else with such a name is none.
    let other = scene.path("there.raw.overlay-9.qcow2");
    fs::write(&other, "somebody's").expect("file");
    scene.host().stop("guest");
    scene.is_run_again_from(&there);
    scene.goes_on();
    assert_eq!(overlays(scene.host().path()), vec![other.clone()]);
    fs::remove_file(other).expect("file");
    scene.host().stop("guest");
    scene.pair.is_clean();
}

#[test]
fn a_process_that_is_killed_while_the_image_is_copied_leaves_what_the_next_one_brings_back() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let slow = [SLOW, &["--format", "qcow2"]].concat();
    let (running, _) = scene.begins(&there, &with(&slow));
    let overlay = is_in_overlay(&scene);
    scene.goes_on();
    kill_both(&scene, running);
    // What the record names is whole, for others as well.
    check(&overlay);
    scene.is_run_again_from(&first);
    none_is_left(&scene);
    assert!(!there.exists(), "a part of the disk is left");
    let _ = scene.moves(&there, &with(&["--format", "qcow2"]));
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    check(&there);
    scene.starts_anew_from(&there);
    scene.host().is_swept();
}

#[test]
fn a_process_that_is_killed_while_overlays_are_consolidated_leaves_what_the_next_one_completes() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let slow = [SLOW, ENDLESS, &["--format", "qcow2"]].concat();
    let (running, id) = scene.begins(&there, &with(&slow));
    scene.waits_in_pass(&id, 2);
    scene.goes_on();
    kill_both(&scene, running);
    // Nothing that is needed is removed by who would move there, and each image but one leads to the right one.
    let said = scene.host().vmm([
        "run",
        "over",
        "--detach",
        "--disk",
        &first.display().to_string(),
    ]);
    let said = said.expect_code(1).stderr;
    assert!(said.contains("the disk was moved to"), "{said}");
    none_is_left(&scene);
    check(&there);
    scene.is_run_again_from(&there);
    let last = scene.path("last.raw");
    let _ = scene.moves(&last, &with(&["--format", "raw"]));
    scene.goes_on();
    scene.is_at(&last);
    scene.host().stop("guest");
    holds_its_content(&last);
    scene.starts_anew_from(&last);
    scene.host().is_swept();
}

#[test]
fn a_move_that_is_cancelled_while_overlays_are_consolidated_goes_back_to_the_old_image() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));
    let slow = [SLOW, ENDLESS].concat();
    let (running, id) = scene.begins(&there, &with(&slow));
    scene.waits_in_pass(&id, 2);
    scene.goes_on();
    let _ = scene.disk_jobs(&["--cancel", &id]);
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
    assert!(!there.exists(), "a part of the disk is left");
    none_is_left(&scene);
    scene.is_at(&first);
    scene.goes_on();
    scene.host().stop("guest");
    holds_its_content(&first);
    scene.starts_anew_from(&first);
    scene.pair.is_clean();
}

#[test]
fn a_guest_waits_for_room_in_its_overlay_and_goes_back_and_a_full_target_is_left() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let first = scene.disk.clone();
    let small = match Mounted::at(scene.path("small"), "80M") {
        Ok(small) => small,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    let there = small.path().join("there.raw");
    let filler = small.path().join("filler");
    // All that there is but for a little, whether it is the overlay's or the copy's.
    for (side, why) in [
        ("destination", "no room for what the guest writes"),
        ("source", "No space left"),
    ] {
        let more = [SLOW, &["--overlay", side]].concat();
        let (running, id) = scene.begins(&there, &with(&more));
        let _ = is_in_overlay(&scene);
        let mut file = File::create(&filler).expect("filler");
        let _full = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("it is full");
        drop(file);
        let said = running.finish(PATIENCE).expect("it ends").expect_code(1);
        assert!(
            said.stderr.contains(why) || said.stderr.contains("No space left"),
            "{said}"
        );
        assert_eq!(scene.job(&id)["result"]["error"]["id"], "disk.no-room");
        assert!(!there.exists(), "a part of the disk is left");
        assert_eq!(overlays(small.path()), Vec::<PathBuf>::new());
        none_is_left(&scene);
        scene.is_at(&first);
        scene.goes_on();
        fs::remove_file(&filler).expect("filler");
    }
    let _ = scene.moves(&there, SNAPSHOT);
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    scene.pair.is_clean();
}

#[test]
fn a_move_whose_overlays_would_not_fit_does_not_begin() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let first = images::sparse(host.path(), "data.raw", 16 << 20);
    // It writes all over again and again.
    let load = "depth=16,start=fill,length=12M,read=0,size=64K,flush=16,interval_ms=100";
    let guest = Guest::idle().disk_load(&first, load);
    let mut console = host.run("guest", &guest);
    let _ = disk_load::ready(&mut console, 0);
    disk_load::goes_on(&mut console, 0, 200);
    let small = match Mounted::at(host.path().join("small"), "18M") {
        Ok(small) => small,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    // There is room for the copy, and less for what the guest writes.
    let there = small.path().join("there.raw");
    let slow = [SLOW, SNAPSHOT].concat();
    let said = host.vmm(move_args("guest:data", &there, &slow));
    let said = said.expect_code(1).stderr;
    assert!(said.contains("are forecast to take"), "{said}");
    assert!(!there.exists());
    assert_eq!(overlays(small.path()), Vec::<PathBuf>::new());
    // Beside the old image there is enough.
    let beside = with(&["--overlay", "source"]);
    let run = host.vmm(move_args("guest:data", &there, &beside)).success();
    let job = run.json_lines().pop().expect("a job");
    let told = report(&job);
    assert!(told["forecast_bytes"].as_u64() > Some(0), "{job:#}");
    disk_load::goes_on(&mut console, 0, 200);
    assert_eq!(overlays(host.path()), Vec::<PathBuf>::new());
    host.stop("guest");
    pair.is_clean();
}

#[test]
fn a_move_that_does_not_get_there_fails_by_name_and_the_guest_is_where_it_was() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let more = [ENDLESS, &["--format", "qcow2"]].concat();
    let said = scene
        .host()
        .vmm(move_args("guest:data", &there, &with(&more)));
    let said = said.expect_code(1).stderr;
    assert!(said.contains("disk.not-converging"), "{said}");
    assert!(!there.exists(), "a part of the disk is left");
    none_is_left(&scene);
    scene.is_at(&first);
    scene.goes_on();
    scene.host().stop("guest");
    holds_its_content(&first);
    scene.starts_anew_from(&first);
    scene.pair.is_clean();
}

#[test]
fn a_disk_whose_image_can_have_no_marks_is_refused() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let file = images::sparse(host.path(), "file", 16 << 20);
    let device = match Loop::over(&file) {
        Ok(device) => device,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    let guest = Guest::idle().disk_with(device.path(), "id=data", VERIFY);
    let mut console = host.run("guest", &guest);
    console.verifies_blocks();
    let there = host.path().join("there.raw");
    let refused = host.vmm(move_args("guest:data", &there, SNAPSHOT));
    let said = refused.expect_code(1).stderr;
    assert!(said.contains("--mode precopy"), "{said}");
    assert!(!there.exists());
    assert_eq!(overlays(host.path()), Vec::<PathBuf>::new());
    console.verifies_blocks();
    host.stop("guest");
    pair.is_clean();
}

#[test]
fn no_write_is_lost_of_a_load_at_depth_16_while_its_disk_moves_by_way_of_overlays() {
    let Some(_lock) = guest_lock() else { return };
    moving_load::loses_nothing(4, &with(&["--downtime-limit", "5s"]), |_| ());
}

#[test]
fn options_of_overlays_are_refused_without_them() {
    let Some(_lock) = guest_lock() else { return };
    let scene = Scene::with(&Guest::idle(), VERIFY);
    let there = scene.path("there.raw");
    for more in [&["--keep-chain"][..], &["--overlay", "source"]] {
        let refused = scene.host().vmm(move_args("guest:data", &there, more));
        assert!(refused.expect_code(2).stderr.contains("--mode snapshot"));
    }
    assert!(!there.exists());
    scene.host().stop("guest");
}
