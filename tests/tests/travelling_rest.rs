//! Disks that travel with a guest which writes them faster than the link carries, and of which the rest is fetched when the guest
//! has gone: no write of which it was told is lost.

use serde_json::Value;
use tests::blackbox::busy_disk::BusyDisk;
use tests::blackbox::moving_disk;
use tests::blackbox::{Vms, guest_lock, holds, images};

const REST: &[&str] = &["--disks", "precopy", "--on-timeout", "on-demand"];

/// Waits until who served the disk knows that nobody needs it any more.
fn is_released(scene: &BusyDisk) {
    moving_disk::is_released(&scene.pair.source);
    let status = scene.pair.destination.status("there");
    assert!(status["disks"][0]["missing"].is_null(), "{status:#}");
}

#[test]
fn a_disk_that_passes_do_not_get_away_goes_over_to_on_demand_when_its_time_is_over() {
    let Some(_lock) = guest_lock() else { return };
    let scene = BusyDisk::begin();
    let more = [REST, &["--timeout", "6s"]].concat();
    let ended = scene.leaves(&more).finish();
    let is_told = |event: &&Value| event["observation"]["id"] == "migration.over-to-on-demand";
    assert_eq!(ended.events.iter().filter(is_told).count(), 1);
    let report = ended.completed();
    let disks = &report["disks"];
    let before = disks["on_demand"][0]["disk_bytes_before_commit"].as_u64();
    assert!(before > Some(8 << 20), "{report:#}");
    assert_eq!(disks["left"][0]["whole"], false, "{report:#}");
    is_released(&scene);
    scene.has_moved();
}

#[test]
fn a_disk_that_gets_away_in_time_leaves_no_rest() {
    let Some(_lock) = guest_lock() else { return };
    let scene = BusyDisk::begin();
    let how = ["--timeout", "1h", "--downtime-limit", "1s"];
    let leaving = scene.leaves_by(&[REST, &how].concat());
    let report = leaving.finish().completed();
    let disks = &report["disks"];
    assert!(disks["on_demand"].is_null(), "{report:#}");
    assert_eq!(disks["left"][0]["whole"], true, "{report:#}");
    is_released(&scene);
    scene.has_moved();
}

#[test]
fn what_is_cancelled_before_leaves_the_guest_and_nothing_else() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = BusyDisk::begin();
    let more = [REST, &["--timeout", "1h"]].concat();
    let mut leaving = scene.leaves(&more);
    leaving.wait_progress();
    assert_eq!(moving_disk::served(&scene.pair.source)[0]["awaiting"], true);
    leaving.interrupt();
    let _ = leaving.finish().ended(4, "cancelled");
    scene.load.goes_on(20);
    assert_eq!(moving_disk::served(&scene.pair.source), Vec::<Value>::new());
    let there = scene.there();
    holds("nothing is left there", || {
        !there.exists() && !images::map_of(&there).exists()
    });
    scene.pair.source.press("guest", b'q');
    scene.pair.source.ended("guest");
    scene.load.comes_to_its_end();
    scene
        .load
        .has_lost_nothing_at(&scene.pair.source.path().join("data.raw"));
    scene.pair.destination.waits_no_more("there");
}
