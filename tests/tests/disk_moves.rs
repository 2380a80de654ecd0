//! Disks that move to other images on their host, under a guest that goes on.

use std::fs::{self, File};
use std::path::Path;

use tests::blackbox::moving_disk::{
    SIZE, SLOW, Scene, VERIFY, allocated, holds_its_content, images_open, move_args,
};
use tests::blackbox::moving_load;
use tests::blackbox::storage::qemu_program;
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Migration, Mounted, Pair, Vms, guest_lock, holds, images};
use tests::skip;

#[test]
fn a_disk_moves_from_format_to_format_and_nothing_of_the_old_image_is_open() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, second, third) = (
        scene.disk.clone(),
        scene.path("second.qcow2"),
        scene.path("third.raw"),
    );
    let job = scene.moves(&second, &["--format", "qcow2"]);
    let report = &job["result"]["disk_move"];
    assert!(report["io_pause_us"].as_u64() > Some(0), "{job:#}");
    assert!(report["copied_bytes"].as_u64() >= report["allocated_bytes"].as_u64());
    assert!(report["passes"].as_u64() >= Some(2), "{job:#}");
    assert_eq!(report["from"], first.display().to_string());
    scene.goes_on();
    scene.is_at(&second);
    scene.is_refused(&first, "the disk was moved to");
    // The old one goes only now.
    let _ = scene.moves(&third, &["--format", "raw", "--after", "delete"]);
    scene.goes_on();
    scene.is_at(&third);
    assert!(first.exists() && !second.exists());
    assert!(allocated(&third) <= allocated(&first) + (1 << 20));
    // And back over the first, which may be written over now.
    let _ = scene.moves(&first, &["--existing"]);
    scene.goes_on();
    scene.is_at(&first);
    scene.host().stop("guest");
    holds_its_content(&first);
    scene.is_refused(&third, "the disk was moved to");
    scene.starts_anew_from(&first);
    scene.pair.is_clean();
}

#[test]
fn a_qcow2_image_that_a_disk_has_left_or_come_to_is_whole() {
    let Some(_lock) = guest_lock() else { return };
    if qemu_program("qemu-img").is_none() {
        println!("{}", skip::line(format_args!("there is no qemu-img")));
        return;
    }
    let mut scene = Scene::verifying();
    let (second, third) = (scene.path("second.qcow2"), scene.path("third.qcow2"));
    for (to, more) in [
        (&second, ["--format", "qcow2"]),
        (&third, ["--after", "keep"]),
    ] {
        let _ = scene.moves(to, &more);
        scene.goes_on();
    }
    scene.host().stop("guest");
    for image in [&second, &third] {
        let mut qemu_img = qemu_program("qemu-img").expect("as before");
        let check = qemu_img.args(["check", "-q", "-f", "qcow2"]).arg(image);
        let output = check.output().expect("qemu-img");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {why}", image.display());
    }
    scene.pair.is_clean();
}

#[test]
fn a_guest_moves_to_another_process_with_the_disk_where_it_is_by_then() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let there = scene.path("there.qcow2");
    let _ = scene.moves(&there, &["--format", "qcow2", "--after", "delete"]);
    // Told by the source, as this is one host.
    let address = scene.pair.destination.receive("there", "127.0.0.1:0");
    let _ = Migration::start(scene.host(), "guest", &address, &[])
        .finish()
        .completed();
    scene.console.moves_to(&scene.pair.destination, "there");
    scene.goes_on();
    let back = scene.path("back.raw");
    let args = move_args("there:data", &back, &["--format", "raw"]);
    let _ = scene.pair.destination.vmm(args).success();
    scene.goes_on();
    scene.pair.destination.stop("there");
    holds_its_content(&back);
    scene.pair.is_clean();
}

#[test]
fn whatever_ends_a_move_early_leaves_one_whole_image_and_the_next_one_works_at_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));

    let (running, id) = scene.begins(&there, SLOW);
    let _ = scene
        .host()
        .vmm(["disk", "jobs", "guest", "--cancel", &id])
        .success();
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(4);
    assert!(!there.exists(), "a part of the disk is left");
    assert_eq!(scene.job(&id)["result"]["outcome"], "cancelled");
    scene.is_at(&first);
    scene.goes_on();

    // Whoever asked is killed: the move goes on, and is ended by somebody else.
    let (mut running, id) = scene.begins(&there, SLOW);
    running.kill();
    assert_eq!(scene.job(&id)["state"], "running");
    let _ = scene
        .host()
        .vmm(["jobs", "guest", &id, "--cancel"])
        .success();
    holds("it is cancelled", || scene.job(&id)["state"] == "concluded");
    // Nobody was there to remove it.
    scene.is_refused(&there, "a disk was being moved to it");
    scene.goes_on();

    // The VM is killed.
    let (running, _) = scene.begins(&there, SLOW);
    scene.host().crash("guest");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(!there.exists(), "a part of the disk is left");
    scene.starts_anew_from(&first);

    // Both are, and what is left is refused, and in nobody's way.
    let guest =
        Guest::dirtying().disk_with(&first, "id=data", "block=check,size=8M block_rate=400");
    scene.console = scene.host().run("guest", &guest);
    let (mut running, _) = scene.begins(&there, SLOW);
    running.kill();
    scene.host().crash("guest");
    scene.is_refused(&there, "a disk was being moved to it");
    scene.console = scene.host().run("guest", &guest);
    let _ = scene.moves(&there, &[]);
    scene.is_at(&there);
    scene.goes_on();
    scene.host().stop("guest");
    holds_its_content(&there);
    scene.starts_anew_from(&there);
    scene.host().is_swept();
}

#[test]
fn a_move_is_paused_and_its_limits_are_changed_and_whatever_else_is_asked_meanwhile_is_defined() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let (there, other) = (scene.path("there.raw"), scene.path("other.raw"));
    let (running, id) = scene.begins(&there, SLOW);
    let told = scene.disk_jobs(&["--pause", &id]);
    assert_eq!(told[0]["state"], "paused", "{told:?}");
    // One piece may be under way.
    let before = scene.done(&id);
    scene.console.verifies_blocks();
    assert!(scene.done(&id) <= before + (1 << 20), "it goes on");

    // Of one disk there is one move, and no guest leaves meanwhile; nothing is left of what is refused.
    let refused = scene.host().vmm(move_args("guest:data", &other, &[]));
    assert!(
        refused
            .expect_code(1)
            .stderr
            .contains("is being moved already")
    );
    assert!(!other.exists());
    let leaves = ["migrate", "guest", "--to", "127.0.0.1:1"];
    let refused = scene.host().vmm(leaves).expect_code(1).stderr;
    assert!(
        refused.contains(&id) && refused.contains("being moved"),
        "{refused}"
    );

    // A pause of the guest is none of the move.
    let _ = scene.host().vmm(["pause", "guest"]).success();
    assert_eq!(scene.disk_jobs(&["--resume", &id])[0]["state"], "running");
    let told = scene.disk_jobs(&["--set", "bandwidth=unlimited,downtime-limit=2s"]);
    assert_eq!(told[0]["limits"]["downtime_limit_ms"], 2000, "{told:?}");
    assert_eq!(told[0]["limits"]["bandwidth_bytes_per_s"], 0, "{told:?}");
    let _ = running.finish(PATIENCE).expect("it ends").success();
    assert_eq!(scene.host().status("guest")["state"], "paused");
    scene.is_at(&there);
    let _ = scene.host().vmm(["resume", "guest"]).success();
    scene.goes_on();
    let over = scene.host().vmm(["jobs", "guest", &id, "--pause"]);
    assert!(over.expect_code(1).stderr.contains("is over"));
    scene.host().stop("guest");
    scene.pair.is_clean();
}

#[test]
fn a_guest_that_ends_in_the_middle_leaves_its_old_image() {
    let Some(_lock) = guest_lock() else { return };
    let scene = Scene::verifying();
    let (first, there) = (scene.disk.clone(), scene.path("there.raw"));
    let (running, _) = scene.begins(&there, SLOW);
    // It powers off by itself.
    scene.host().press("guest", b'q');
    assert_eq!(scene.host().ended("guest")["end"]["how"], "powered-off");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(!there.exists(), "a part of the disk is left");
    scene.starts_anew_from(&first);

    let guest = Guest::idle().disk_with(&first, "id=data", "block=check,size=8M block_rate=400");
    let _console = scene.host().run("guest", &guest);
    let (running, _) = scene.begins(&there, SLOW);
    scene.host().stop("guest");
    let _ = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(!there.exists(), "a part of the disk is left");
    scene.starts_anew_from(&first);
    scene.pair.is_clean();
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_copied() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::with(&Guest::idle(), VERIFY);
    let there = scene.path("there.raw");
    let small = images::sparse(scene.host().path(), "small.raw", SIZE - 512);
    let foreign = images::text(scene.host().path());
    let cases: [(&str, &Path, &[&str], i32, &str); 13] = [
        ("guest:other", &there, &[], 1, "has no disk other"),
        ("guest", &there, &[], 2, "--all"),
        ("guest:data", &small, &[], 1, "--existing"),
        ("guest:data", &small, &["--existing"], 1, "67108352"),
        (
            "guest:data",
            &foreign,
            &["--existing", "--format", "qcow2"],
            1,
            "no qcow2 image",
        ),
        (
            "guest:data",
            Path::new("/nowhere/at/all.raw"),
            &[],
            1,
            "/nowhere/at",
        ),
        ("guest:data", &there, &["--mode", "copy"], 2, "no mode"),
        (
            "guest:data",
            &there,
            &["--on-target-error", "stop"],
            2,
            "of mirror",
        ),
        (
            "guest:data",
            &there,
            &["--mode", "mirror", "--on-not-converging", "fail"],
            2,
            "always ends",
        ),
        ("guest:data", &there, &["--pull", "off"], 2, "on-demand"),
        (
            "guest:data",
            &there,
            &["--mode", "on-demand", "--existing"],
            2,
            "made for it",
        ),
        (
            "guest:data",
            &there,
            &["--format", "vdi"],
            2,
            "raw and qcow2",
        ),
        ("nobody:data", &there, &[], 1, "nobody"),
    ];
    for (disk, to, more, code, why) in cases {
        let said = scene
            .host()
            .vmm(move_args(disk, to, more))
            .expect_code(code);
        assert!(said.stderr.contains(why), "{disk} {more:?}: {said}");
    }
    // The disk that it has already.
    let disk = scene.disk.clone();
    let said = scene
        .host()
        .vmm(move_args("guest:data", &disk, &["--existing"]));
    assert!(said.expect_code(1).stderr.contains("in use"));
    assert!(!there.exists());
    scene.goes_on();
    scene.is_at(&disk);
    scene.host().stop("guest");
    scene.pair.is_clean();
}

#[test]
fn a_target_without_room_is_found_before_the_first_byte_and_one_that_fills_up_is_left() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::verifying();
    let small = match Mounted::at(scene.path("small"), "40M") {
        Ok(small) => small,
        Err(why) => return println!("{}", skip::line(format_args!("{why}"))),
    };
    let there = small.path().join("there.raw");
    let filler = small.path().join("filler");
    let fill = |bytes: usize| fs::write(&filler, vec![1; bytes]).expect("filler");
    fill(24 << 20);
    let said = scene.host().vmm(move_args("guest:data", &there, &[]));
    let said = said.expect_code(1).stderr;
    assert!(said.contains("bytes left"), "{said}");
    assert!(!there.exists());
    fs::remove_file(&filler).expect("filler");

    let (running, id) = scene.begins(&there, SLOW);
    let free = 40 << 20;
    let taken = allocated(&there);
    // All that there is but for a little.
    let mut file = File::create(&filler).expect("filler");
    let filled = std::io::copy(
        &mut std::io::Read::take(std::io::repeat(1), free - taken),
        &mut file,
    );
    drop((filled, file));
    let said = running.finish(PATIENCE).expect("it ends").expect_code(1);
    assert!(said.stderr.contains("No space left"), "{said}");
    assert_eq!(scene.job(&id)["result"]["error"]["id"], "disk.no-room");
    assert!(!there.exists(), "a part of the disk is left");
    scene.goes_on();
    fs::remove_file(&filler).expect("filler");
    let _ = scene.moves(&there, &[]);
    scene.goes_on();
    scene.is_at(&there);
    scene.host().stop("guest");
    scene.pair.is_clean();
}

/// Every write that the guest was told is done, at any depth, is on the image that it ends with.
#[test]
fn no_write_is_lost_of_a_load_at_depth_16_while_its_disk_moves_to_and_fro() {
    let Some(_lock) = guest_lock() else { return };
    moving_load::loses_nothing(6, &["--downtime-limit", "5s"], |_| ());
}

#[test]
fn all_disks_of_a_guest_move_to_a_folder() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let host = &pair.source;
    let disks = ["one.raw", "two.raw"].map(|name| images::sparse(host.path(), name, 16 << 20));
    let guest = Guest::dirtying()
        .disk_with(&disks[0], "id=one", VERIFY)
        .disk_with(&disks[1], "id=two", "");
    let mut console = host.run("guest", &guest);
    let folder = host.path().join("there");
    fs::create_dir(&folder).expect("folder");
    let args = move_args("guest", &folder, &["--all", "--after", "delete"]);
    let _ = host.vmm(args).success();
    console.verifies_blocks();
    let moved = ["one.raw", "two.raw"].map(|name| folder.join(name));
    let mut open = images_open(host.pid("guest"));
    open.sort();
    open.dedup();
    assert_eq!(open, moved);
    assert!(disks.iter().all(|disk| !disk.exists()));
    host.stop("guest");
    pair.is_clean();
}
