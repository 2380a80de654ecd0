//! Disks that travel with a guest which writes them faster than the link carries: mirrored, the guest waits for the link and
//! gets away; no write of which it was told is lost.

use serde_json::Value;
use tests::blackbox::busy_disk::BusyDisk;
use tests::blackbox::wait::eventually;
use tests::blackbox::{Vms, guest_lock};

/// The guest has moved while what it wrote went along.
fn has_moved(scene: BusyDisk, report: &Value) {
    assert_eq!(report["verified"], true, "{report:#}");
    let bytes = report["disks"]["mirrored_bytes"].as_u64();
    assert!(bytes > Some(0), "{report:#}");
    scene.has_moved();
}

#[test]
fn a_guest_that_writes_faster_than_the_link_carries_moves_with_a_mirrored_disk() {
    let Some(_lock) = guest_lock() else { return };
    let scene = BusyDisk::begin();
    let leaving = scene.leaves(&["--disks", "data=mirror,backlog=256KiB"]);
    let told = eventually("both classes go", || {
        let jobs = scene.pair.source.vmm(["disk", "jobs", "guest", "--json"]);
        let job = jobs.success().json_lines().pop()?;
        let disk = &job["disks"][0];
        let goes = |class: &str| disk["class_bytes_per_s"][class].as_u64() > Some(0);
        (goes("write") && goes("background")).then(|| disk.clone())
    });
    assert_eq!(told["id"], "data", "{told:#}");
    let report = leaving.finish().completed();
    let of_disk = &report["disks"]["by_disk"][0];
    let bytes = |class: &str| of_disk["class_bytes"][class].as_u64().expect("bytes");
    assert!(bytes("write") >= told["class_bytes"]["write"].as_u64().expect("bytes"));
    let all = report["disks"]["bytes"].as_u64().expect("bytes");
    assert_eq!(bytes("write") + bytes("background"), all, "{report:#}");
    has_moved(scene, &report);
}

#[test]
fn a_disk_that_passes_do_not_get_away_goes_over_to_mirror_when_its_time_is_over() {
    let Some(_lock) = guest_lock() else { return };
    let scene = BusyDisk::begin();
    let more = ["--timeout", "8s", "--on-timeout", "mirror"];
    let report = scene
        .leaves(&[&["--disks", "precopy"], &more[..]].concat())
        .finish()
        .completed();
    assert!(
        report["iterations"].as_array().expect("passes").len() > 2,
        "{report:#}"
    );
    has_moved(scene, &report);
}

#[test]
fn a_destination_that_dies_leaves_the_guest_of_a_mirrored_disk_writing_and_whole() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = BusyDisk::begin();
    let leaving = scene.leaves(&["--disks", "mirror", "--reconnect-for", "0s"]);
    scene.load.goes_on(20);
    scene.pair.destination.crash("there");
    let _ = leaving.finish().ended(1, "failed");
    scene.load.goes_on(200);
    scene.pair.source.press("guest", b'q');
    scene.pair.source.ended("guest");
    scene.load.comes_to_its_end();
    let image = scene.pair.source.path().join("data.raw");
    scene.load.has_lost_nothing_at(&image);
}

#[test]
fn a_disk_goes_before_memory_and_its_guest_writes_no_faster_than_its_user_says_by_then() {
    let Some(_lock) = guest_lock() else { return };
    let scene = BusyDisk::begin();
    let mut leaving = scene.leaves(&["--disks", "data=mirror,before,writes=16KiB/s"]);
    let rate = |class: &str| {
        let jobs = scene.pair.source.vmm(["disk", "jobs", "guest", "--json"]);
        let job = jobs.success().json_lines().pop()?;
        job["disks"][0]["class_bytes_per_s"][class].as_u64()
    };
    eventually("the disk goes, and what the guest writes hardly", || {
        (rate("background") > Some(1 << 20) && rate("write") < Some(1 << 20)).then_some(())
    });
    let refused = scene
        .pair
        .source
        .vmm(["migrate", "guest", "--set", "other,writes=1MiB/s"]);
    assert_eq!(refused.code(), 2, "{}", refused.stderr);
    let set = ["disk", "jobs", "guest", "--set", "data,writes=0"];
    let _ = scene.pair.source.vmm(set).success();
    eventually("the guest writes as fast as the link lets it", || {
        (rate("write") > Some(2 << 20)).then_some(())
    });
    let pass = |n: u64| move |event: &Value| event["event"] == "iteration" && event["n"] == n;
    let first = leaving.wait_for("the first pass", pass(1));
    assert_eq!(first["pages"], 0, "{first:#}");
    assert!(first["disk_bytes"].as_u64() >= Some(32 << 20), "{first:#}");
    let second = leaving.wait_for("the second pass", pass(2));
    assert_eq!(second["pages"], 192 << 8, "{second:#}");
    let report = leaving.finish().completed();
    has_moved(scene, &report);
}
