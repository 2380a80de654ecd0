//! Disks that go to another host with their guest by way of overlays: their image does not change while it is copied, what the
//! guest writes follows in rounds, and whatever ends that leaves neither an overlay nor a write behind.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::blackbox::moving_disk::{Load, Scene as Verifying};
use tests::blackbox::storage::qemu_program;
use tests::blackbox::{Guest, Migration, Pair, Vms, guest_lock, holds, images};

/// Writes without end all over the disk, of which a part is flushed.
const BUSY: &str = "depth=8,start=fill,length=64M,read=10,verify=5,discard=5,zeroes=5,size=16K/64K,flush=64,interval_ms=100,rate=200";
const SNAPSHOT: &[&str] = &["--disks", "data=snapshot,overlay=source"];
/// There is time to do something in the first pass.
const SLOW: &[&str] = &["--bandwidth", "12MiB/s"];
/// No rest fits, so that there is time to do something between two rounds.
const ENDLESS: &[&str] = &["--downtime-limit", "1ms"];

fn overlays(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("folder");
    let paths = entries.map(|entry| entry.expect("entry").path());
    paths
        .filter(|path| path.to_string_lossy().contains("overlay"))
        .collect()
}

fn hash(path: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(path).expect("image"))
}

fn listens(pair: &Pair, name: &str, file: &str) -> (String, PathBuf) {
    let there = pair.destination.path().join(file);
    let format = if file.ends_with("qcow2") {
        "qcow2"
    } else {
        "raw"
    };
    let disk = format!("data={},create,format={format}", there.display());
    let more = ["--disk", disk.as_str()];
    let address = pair.destination.receive_with(name, "127.0.0.1:0", &more);
    (address, there)
}

fn pass(n: u64) -> impl Fn(&Value) -> bool {
    move |event: &Value| event["event"] == "iteration" && event["n"] == n
}

#[test]
fn an_image_does_not_change_while_it_is_copied_and_what_an_endless_load_writes_follows_in_rounds() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let image = images::sparse(pair.source.path(), "data.raw", 64 << 20);
    let guest = Guest::dirtying().memory("192MiB").disk_load(&image, BUSY);
    let mut load = Load::on(pair.source.run("guest", &guest));
    let (address, there) = listens(&pair, "there", "there.qcow2");
    let mut leaving = Migration::start(&pair.source, "guest", &address, &[SLOW, SNAPSHOT].concat());
    leaving.wait_progress();
    let frozen = hash(&image);
    load.goes_on(50);
    assert_eq!(hash(&image), frozen, "the image changes while it is copied");
    let first = leaving.wait_for("the first pass", pass(1));
    assert!(first["disk_bytes"].as_u64() >= Some(32 << 20), "{first:#}");
    let set = [
        "migrate",
        "guest",
        "--set",
        "bandwidth=unlimited,downtime-limit=1s",
    ];
    let _ = pair.source.vmm(set).success();
    let report = leaving.finish().completed();
    assert_eq!(report["verified"], true, "{report:#}");
    let told = &report["disks"]["snapshots"][0];
    assert_eq!(told["id"], "data", "{report:#}");
    assert!(told["rounds"].as_u64() >= Some(1), "{report:#}");
    assert!(told["overlay_bytes"].as_u64() > Some(0), "{report:#}");
    holds("no overlay is left", || {
        overlays(pair.source.path()).is_empty()
    });
    let said = pair.source.vmm([
        "run",
        "again",
        "--detach",
        "--disk",
        &image.display().to_string(),
    ]);
    let said = said.expect_code(1).stderr;
    assert!(said.contains("the guest went to"), "{said}");
    let host = &pair.destination;
    load.console.moves_to(host, "there");
    load.goes_on(100);
    host.press("there", b'q');
    host.ended("there");
    load.comes_to_its_end();
    if let Some(mut qemu_img) = qemu_program("qemu-img") {
        let checked = qemu_img.args(["check", "-q"]).arg(&there).status();
        assert!(checked.expect("qemu-img").success());
        let raw = there.with_extension("raw");
        let mut convert = qemu_program("qemu-img").expect("as before");
        let convert = convert.args(["convert", "-O", "raw"]).arg(&there).arg(&raw);
        assert!(convert.status().expect("qemu-img").success());
        load.has_lost_nothing_at(&raw);
    }
}

/// The guest goes on from its image, and moves at once.
fn stays_and_goes(mut scene: Verifying) {
    scene.goes_on();
    scene.is_at(&scene.disk.clone());
    assert_eq!(overlays(scene.host().path()), Vec::<PathBuf>::new());
    let (address, _) = listens(&scene.pair, "at-last", "at-last.raw");
    let leaving = Migration::start(scene.host(), "guest", &address, SNAPSHOT);
    let _ = leaving.finish().completed();
    holds("no overlay is left", || {
        overlays(scene.host().path()).is_empty()
    });
    scene.console.moves_to(&scene.pair.destination, "at-last");
    scene.console.verifies_blocks();
    scene.pair.destination.stop("at-last");
}

#[test]
fn a_guest_that_stays_has_its_image_back_with_all_that_it_wrote_and_moves_at_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Verifying::verifying();
    // In the first pass the destination dies; in a later one it is cancelled.
    let (address, _) = listens(&scene.pair, "dies", "dies.raw");
    let more = [SLOW, SNAPSHOT, &["--reconnect-for", "0s"]].concat();
    let mut leaving = Migration::start(scene.host(), "guest", &address, &more);
    leaving.wait_progress();
    scene.goes_on();
    scene.pair.destination.crash("dies");
    let _ = leaving.finish().ended(1, "failed");
    scene.is_at(&scene.disk.clone());
    let (address, there) = listens(&scene.pair, "there", "there.raw");
    let more = [ENDLESS, SNAPSHOT].concat();
    let mut leaving = Migration::start(scene.host(), "guest", &address, &more);
    let _ = leaving.wait_for("a third pass", pass(3));
    scene.goes_on();
    let _ = scene.host().vmm(["migrate", "guest", "--cancel"]).success();
    let _ = leaving.finish().ended(4, "cancelled");
    holds("a part of the disk is left", || !there.exists());
    // It ends with what became of its migration.
    let _ = scene.pair.destination.vmm(["stop", "there", "--force"]);
    stays_and_goes(scene);
}

#[test]
fn a_source_that_is_killed_leaves_an_overlay_that_the_next_guest_brings_back() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Verifying::verifying();
    let image = scene.disk.clone();
    // In the first pass, in which the image is as it was; then in a later one.
    for (there, more) in [("first", SLOW), ("later", ENDLESS)] {
        let (address, _) = listens(&scene.pair, there, "there.raw");
        let more = [more, SNAPSHOT].concat();
        let mut leaving = Migration::start(scene.host(), "guest", &address, &more);
        match there {
            "first" => leaving.wait_progress(),
            _ => drop(leaving.wait_for("a third pass", pass(3))),
        }
        scene.goes_on();
        leaving.kill();
        scene.host().crash("guest");
        assert_ne!(overlays(scene.host().path()), Vec::<PathBuf>::new());
        scene.pair.destination.crash(there);
        scene.is_run_again_from(&image);
        assert_eq!(overlays(scene.host().path()), Vec::<PathBuf>::new());
    }
    stays_and_goes(scene);
}
