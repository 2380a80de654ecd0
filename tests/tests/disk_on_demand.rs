//! Disks that go over to their new image at once, and whose content comes afterwards.

use std::fs;
use std::path::Path;

use tests::blackbox::moving_disk::{Scene, holds_its_content, move_args};
use tests::blackbox::moving_load;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Vms, eventually, guest_lock, images};
use tests::process::Process;

const ON_DEMAND: &[&str] = &["--mode", "on-demand"];
/// Slow enough that there is time to do something while it comes.
const SLOW: &[&str] = &["--mode", "on-demand", "--bandwidth", "2MiB/s"];

fn hash(image: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(image).expect("image"))
}

/// A move that has gone over and goes on, with its job.
#[track_caller]
fn has_gone_over(scene: &Scene, to: &Path, more: &[&str]) -> (Process, String) {
    let running = scene.host().spawn(move_args("guest:data", to, more));
    let id = eventually("the disk goes over", || {
        let disk = &scene.host().status("guest")["disks"][0];
        let job = scene.host().jobs("guest").into_iter().next_back()?;
        let is_there = disk["path"] == to.display().to_string();
        is_there.then(|| job["id"].as_str().expect("id").to_owned())
    });
    (running, id)
}

#[test]
fn a_disk_goes_over_at_once_and_what_it_lacks_comes_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, second, third) = (
        scene.disk.clone(),
        scene.path("second.qcow2"),
        scene.path("third.raw"),
    );
    let (running, id) = has_gone_over(&scene, &second, &[SLOW, &["--format", "qcow2"]].concat());
    let before = hash(&first);
    assert!(images::map_of(&second).exists());
    // What the guest needs comes before all the rest.
    scene.goes_on();
    let cancelled = scene
        .host()
        .vmm(["disk", "jobs", "guest", "--cancel", &id])
        .expect_code(1);
    assert!(
        cancelled.stderr.contains("can be paused"),
        "{}",
        cancelled.stderr
    );
    let _ = scene.disk_jobs(&["--set", "bandwidth=unlimited"]);
    let job = running.finish(PATIENCE).expect("it ends").success();
    let job = job.json_lines().pop().expect("a job");
    let report = &job["result"]["disk_move"];
    assert_eq!(job["result"]["outcome"], "completed", "{job:#}");
    assert!(report["io_pause_us"].as_u64() > Some(0), "{job:#}");
    let copied = report["copied_bytes"].as_u64().expect("bytes");
    assert!(
        copied <= report["allocated_bytes"].as_u64().expect("bytes"),
        "{job:#}"
    );
    assert!(copied >= 24 << 20, "{job:#}");
    assert_eq!(hash(&first), before, "the old image was written");
    assert!(!images::map_of(&second).exists());
    scene.goes_on();
    scene.is_at(&second);
    scene.is_refused(&first, "the disk was moved to");
    // And on, as a raw image; the old one goes only then.
    let _ = scene.moves(
        &third,
        &[ON_DEMAND, &["--format", "raw", "--after", "delete"]].concat(),
    );
    scene.goes_on();
    scene.is_at(&third);
    assert!(!second.exists() && !images::map_of(&third).exists());
    scene.host().stop("guest");
    holds_its_content(&third);
    scene.starts_anew_from(&third);
    scene.pair.is_clean();
}

#[test]
fn what_nobody_asks_for_comes_as_told() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let there = scene.path("there.raw");
    let off = [ON_DEMAND, &["--pull", "off"]].concat();
    let (running, id) = has_gone_over(&scene, &there, &off);
    scene.goes_on();
    assert_eq!(scene.job(&id)["state"], "paused");
    // Far from all: what the guest does not touch is not there.
    assert!(scene.done(&id) < 16 << 20, "{:#}", scene.job(&id));
    let leaves = ["migrate", "guest", "--to", "127.0.0.1:1"];
    let refused = scene.host().vmm(leaves).expect_code(1).stderr;
    assert!(refused.contains("being moved"), "{refused}");
    assert_eq!(scene.disk_jobs(&["--resume", &id])[0]["state"], "running");
    let _ = running.finish(PATIENCE).expect("it ends").success();
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    scene.pair.is_clean();
}

#[test]
fn whatever_ends_a_guest_before_its_disk_is_whole_loses_nothing_of_it() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let more = [SLOW, &["--format", "qcow2"]].concat();
    let (running, _) = has_gone_over(&scene, &there, &more);
    scene.goes_on();
    scene.host().crash("guest");
    let said = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(said.stderr.contains("vmm disk pull"), "{}", said.stderr);
    // Neither is the disk alone, whatever is said.
    scene.is_refused(&first, "the disk was moved to");
    let image = format!("{},format=qcow2", there.display());
    let run = [
        "run",
        "refused",
        "--detach",
        "--use-stale",
        "--disk",
        &image,
    ];
    let said = scene.host().vmm(run).expect_code(1).stderr;
    assert!(said.contains("vmm disk pull"), "{said}");
    // Brought together, and looked at: the guest finds what it wrote.
    let path = there.display().to_string();
    let pulled = scene
        .host()
        .vmm(["disk", "pull", &path, "--json"])
        .success();
    let told = pulled.json_lines().pop().expect("what was done");
    assert!(told["fetched_bytes"].as_u64() > Some(0), "{told:#}");
    assert!(!images::map_of(&there).exists());
    let again = scene.host().vmm(["disk", "pull", &path]).expect_code(1);
    assert!(again.stderr.contains("vmm-map"), "{}", again.stderr);
    let check = scene.host().vmm(["disk", "check", &path]);
    let _ = check.success();
    let guest = Guest::dirtying().disk_with(
        &there,
        "id=data,format=qcow2",
        "block=check,size=8M block_rate=400",
    );
    scene.console = scene.host().run("guest", &guest);
    scene.goes_on();

    // Its user ends the guest.
    let third = scene.path("third.raw");
    let more = [SLOW, &["--format", "raw"]].concat();
    let (running, _) = has_gone_over(&scene, &third, &more);
    scene.host().stop("guest");
    let said = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(said.stderr.contains("vmm disk pull"), "{}", said.stderr);
    let only_read = format!("{},readonly", third.display());
    let run = ["run", "refused", "--detach", "--disk", &only_read];
    let said = scene.host().vmm(run).expect_code(1).stderr;
    assert!(said.contains("vmm disk pull"), "{said}");
    let path = third.display().to_string();
    let _ = scene.host().vmm(["disk", "pull", &path]).success();
    holds_its_content(&third);
    scene.starts_anew_from(&third);
    scene.host().is_swept();
}

/// The process of the VM ends in the middle: who runs the guest again need know nothing of it.
#[test]
fn a_guest_that_is_run_again_begins_with_what_its_disk_lacks() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.qcow2"));
    let more = [SLOW, &["--format", "qcow2"]].concat();
    let (running, id) = has_gone_over(&scene, &there, &more);
    scene.goes_on();
    let before = hash(&first);
    scene.host().crash("guest");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    scene.is_run_again_from(&there);
    scene.goes_on();
    let job = scene.job(&id);
    assert_eq!(
        (&job["kind"], &job["disk"]),
        (&"disk-move".into(), &"data".into()),
        "{job:#}"
    );
    eventually("the disk is whole", || {
        let job = scene.job(&id);
        (job["state"] == "concluded").then(|| {
            assert_eq!(job["result"]["outcome"], "completed", "{job:#}");
            let report = &job["result"]["disk_move"];
            assert_eq!(report["from"], first.display().to_string(), "{job:#}");
        })
    });
    assert_eq!(hash(&first), before, "the old image was written");
    scene.goes_on();
    scene.is_at(&there);
    scene.is_refused(&first, "the disk was moved to");
    scene.host().stop("guest");
    // From here on it is a disk as any other, and its map goes with the next guest.
    fs::remove_file(&first).expect("the old image");
    scene.is_run_again_from(&there);
    assert!(!images::map_of(&there).exists());
    scene.host().stop("guest");
    let path = there.display().to_string();
    let _ = scene.host().vmm(["disk", "check", &path]).success();
    scene.host().is_swept();
}

#[test]
fn an_old_image_that_was_used_meanwhile_is_not_taken_for_the_rest_of_a_disk() {
    let Some(_lock) = guest_lock() else { return };
    let scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));
    let (running, _) = has_gone_over(&scene, &there, SLOW);
    scene.host().crash("guest");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    let old = first.display().to_string();
    let run = ["run", "other", "--detach", "--use-stale", "--disk", &old];
    let _ = scene.host().vmm(run);
    let _ = scene.host().vmm(["stop", "other", "--force"]);
    let path = there.display().to_string();
    let said = scene
        .host()
        .vmm(["disk", "pull", &path])
        .expect_code(1)
        .stderr;
    assert!(said.contains("has been used since"), "{said}");
    scene.is_refused(&there, "has been used since");
}

/// Every write that the guest was told is done, at any depth, is on the image that it ends with.
#[test]
fn no_write_is_lost_of_a_load_at_depth_16_while_its_disk_moves_on_demand() {
    let Some(_lock) = guest_lock() else { return };
    moving_load::loses_nothing(6, ON_DEMAND, |next| assert!(!images::map_of(next).exists()));
}
