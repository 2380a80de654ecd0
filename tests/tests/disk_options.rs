//! What is said of a disk that travels: the format that it gets, and what becomes of the image that it leaves.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::blackbox::storage::qemu_program;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, eventually, guest_lock};
use tests::skip;

const LISTEN: &str = "127.0.0.1:0";
const SIZE: u64 = 32 << 20;

/// A guest with a disk.
struct Scene {
    pair: Pair,
    console: Console,
    disk: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let pair = Pair::new();
        let disk = pair.source.path().join("data.raw");
        let file = File::create(&disk).expect("image");
        file.set_len(SIZE).expect("size");
        file.write_all_at(&[0xc7; 8 << 20], 16 << 20)
            .expect("content");
        let words = "block=verify,size=4M block_rate=200";
        let guest = Guest::dirtying().disk_with(&disk, "id=data", words);
        let mut console = pair.source.run("guest", &guest);
        console.verifies_blocks();
        Self {
            pair,
            console,
            disk,
        }
    }

    #[track_caller]
    fn receives(&self, vm: &str, how: &[&str]) -> String {
        self.pair.destination.receive_with(vm, LISTEN, how)
    }

    #[track_caller]
    fn begins(&self, to: &str, more: &[&str]) -> Migration {
        Migration::start(&self.pair.source, "guest", to, more)
    }

    #[track_caller]
    fn goes_on(&mut self, vm: &str) {
        self.console.moves_to(&self.pair.destination, vm);
        self.console.verifies_blocks();
        self.console.verifies_ledger();
    }

    /// The image here cannot be taken for the guest's disk.
    #[track_caller]
    fn is_marked(&self) {
        let path = text(&self.disk);
        let run = ["run", "stale", "--detach", "--disk", &path];
        let said = self.pair.source.vmm(run).expect_code(1).stderr;
        assert!(said.contains("the guest went to"), "{said}");
    }

    fn ends(&self, vm: &str) {
        self.pair.destination.stop(vm);
        self.pair.is_clean();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn left(report: &Value) -> &Value {
    &report["disks"]["left"][0]
}

#[test]
fn a_disk_gets_the_format_that_is_asked_for_and_its_image_goes() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let folder = scene.pair.destination.path().join("disks");
    fs::create_dir(&folder).expect("folder");
    let address = scene.receives("there", &["--disk-dir", &text(&folder)]);
    let disks = "data=precopy,format=qcow2,after=delete";
    let report = scene
        .begins(&address, &["--disks", disks])
        .finish()
        .completed();
    scene.goes_on("there");
    let expected = serde_json::json!({
        "id": "data", "path": text(&scene.disk), "after": "delete", "whole": true, "removed": true,
    });
    assert_eq!(*left(&report), expected);
    assert!(!scene.disk.exists());
    let made = folder.join("there-data.qcow2");
    let status = scene.pair.destination.status("there");
    assert_eq!(status["disks"][0]["path"], text(&made), "{status:#}");
    assert_eq!(status["disks"][0]["format"], "qcow2");
    scene.ends("there");
    match qemu_program("qemu-img") {
        Some(mut qemu_img) => {
            let check = qemu_img.args(["check", "-q", "-f", "qcow2"]).arg(&made);
            let output = check.output().expect("qemu-img");
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{why}");
        }
        None => println!("{}", skip::line(format_args!("there is no qemu-img"))),
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_both_named() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let there = text(&scene.pair.destination.path().join("there.img"));
    let raw = format!("data={there},create,format=raw");
    let address = scene.receives("raw", &["--disk", &raw]);
    let said = scene
        .begins(&address, &["--disks", "precopy,format=qcow2"])
        .finish()
        .ended(1, "failed");
    assert!(
        said.contains("format qcow2") && said.contains("have it in raw"),
        "{said}"
    );
    scene.pair.destination.waits_no_more("raw");
    for (wrong, named) in [
        ("data=precopy,log=mirror", "not in this version"),
        ("data=precopy,after=mirror", "after=mirror"),
        ("data=precopy,size=7", "size=7"),
        ("data=shared,after=delete", "keeps its image"),
        ("data=precopy,format=vmdk", "vmdk"),
    ] {
        let args = ["migrate", "guest", "--to", &address, "--disks", wrong];
        let said = scene.pair.source.vmm(args).expect_code(2).stderr;
        assert!(said.contains(named), "{wrong}: {said}");
    }
    assert!(!Path::new(&there).exists() && scene.disk.exists());
    // Where both say the same, and where the destination says nothing.
    let qcow2 = format!("data={there},create,format=qcow2");
    let address = scene.receives("there", &["--disk", &qcow2]);
    let report = scene
        .begins(&address, &["--disks", "precopy,format=qcow2"])
        .finish()
        .completed();
    assert_eq!(left(&report)["after"], "keep");
    assert_eq!(left(&report)["removed"], false);
    scene.goes_on("there");
    scene.is_marked();
    scene.ends("there");
}

/// The process of a VM removes nothing: that is left to the command line, and is left undone without it.
#[test]
fn an_image_whose_remover_was_killed_stays_and_is_marked() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let there = text(&scene.pair.destination.path().join("there.raw"));
    let address = scene.receives("there", &["--disk", &format!("data={there},create")]);
    let more = ["--disks", "precopy,after=delete", "--bandwidth", "8MiB/s"];
    let mut migration = scene.begins(&address, &more);
    migration.wait_progress();
    // Which kills it.
    drop(migration);
    let fast = ["migrate", "guest", "--set", "bandwidth=unlimited"];
    let _ = scene.pair.source.vmm(fast).success();
    eventually("the guest has gone", || {
        let status = scene.pair.source.status("guest");
        (status["state"] == "migrated").then_some(())
    });
    scene.goes_on("there");
    let status = scene.pair.source.status("guest");
    let report = &status["migration"]["last"];
    assert_eq!(left(report)["removed"], false, "{status:#}");
    scene.is_marked();
    scene.ends("there");
}

/// What lies by the disk's name is not what the guest had.
#[test]
fn another_file_that_has_the_name_by_now_is_not_removed() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let renamed = scene.pair.source.path().join("renamed.raw");
    fs::rename(&scene.disk, &renamed).expect("rename");
    fs::write(&scene.disk, "precious").expect("file");
    let there = text(&scene.pair.destination.path().join("there.raw"));
    let address = scene.receives("there", &["--disk", &format!("data={there},create")]);
    let report = scene
        .begins(&address, &["--disks", "precopy,after=delete"])
        .finish()
        .completed();
    scene.goes_on("there");
    assert_eq!(left(&report)["removed"], false, "{report:#}");
    assert_eq!(
        report["warnings"][0]["id"], "disk.not-removed",
        "{report:#}"
    );
    assert_eq!(fs::read(&scene.disk).expect("file"), b"precious");
    assert!(renamed.exists());
    scene.ends("there");
}
