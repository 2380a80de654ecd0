//! Guests that go to another host before the content of their disk does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::Host;
use tests::blackbox::moving_disk::{CHECK, Scene, allocated, holds_its_content, options_of};
use tests::blackbox::{Guest, Migration, Vms, eventually, guest_lock, holds, images, kill};

const LISTEN: &str = "127.0.0.1:0";
const ON_DEMAND: &[&str] = &["--disks", "data=on-demand"];
const NOT_BY_ITSELF: &[&str] = &["--disks", "data=on-demand,pull=off"];

fn hash(image: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(image).expect("image"))
}

/// A guest with a disk that only its host has, and another host.
struct Leaving {
    scene: Scene,
    /// Where the disk comes.
    there: PathBuf,
}

impl Leaving {
    fn new(there: &str) -> Self {
        let scene = Scene::verifying();
        let there = scene.pair.destination.path().join(there);
        Self { scene, there }
    }

    fn here(&self) -> &Host {
        &self.scene.pair.source
    }

    fn destination(&self) -> &Host {
        &self.scene.pair.destination
    }

    /// Waits there for the guest.
    fn receives(&self, how: &[&str]) -> String {
        let disk = format!("data={},create", self.there.display());
        let disk = match self.there.extension().is_some_and(|it| it == "qcow2") {
            true => format!("{disk},format=qcow2"),
            false => disk,
        };
        let all = [&["--disk", &*disk], how].concat();
        self.destination().receive_with("guest", LISTEN, &all)
    }

    /// The guest goes; its report.
    fn goes(&mut self, address: &str, how: &[&str]) -> Value {
        let report = Migration::start(self.here(), "guest", address, how)
            .finish()
            .completed();
        self.scene
            .console
            .moves_to(&self.scene.pair.destination, "guest");
        report
    }

    /// What is recorded of images that are served here.
    fn served(&self) -> Vec<Value> {
        let run = self.here().vmm(["disk", "serve", "--list", "--json"]);
        run.success().json_lines()
    }

    /// What is missing there.
    fn missing(&self) -> Option<Value> {
        let status = self.destination().status("guest");
        let missing = status["disks"][0]["missing"].clone();
        (!missing.is_null()).then_some(missing)
    }

    /// Waits until nothing is, and who served it knows.
    #[track_caller]
    fn becomes_whole(&self) {
        eventually("the disk is whole", || {
            self.missing().is_none().then_some(())
        });
        eventually("its server is told so", || {
            let served = self.served();
            let is_over = served[0]["released"] == true && served[0]["pid"].is_null();
            is_over.then_some(())
        });
    }
}

#[test]
fn a_guest_goes_before_its_disk_does_and_fetches_each_block_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    let report = leaving.goes(&address, ON_DEMAND);
    let disks = &report["disks"];
    assert_eq!(disks["bytes"], 0, "{report:#}");
    assert_eq!(
        disks["on_demand"][0]["disk_bytes_before_commit"], 0,
        "{report:#}"
    );
    assert_eq!(disks["left"][0]["whole"], false, "{report:#}");
    let before = hash(&first);
    leaving.scene.console.verifies_blocks();
    leaving.scene.console.verifies_ledger();
    leaving.becomes_whole();
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    leaving.scene.is_refused(&first, "the guest went to");
    leaving.destination().stop("guest");
    // What nobody has written stays a hole: beside the content is what the guest has come to write.
    assert!(allocated(&leaving.there) <= (24 + 8 + 1) << 20);
    holds_its_content(&leaving.there);
    let guest = Guest::idle().disk_with(&leaving.there, options_of(&leaving.there), CHECK);
    let mut console = leaving.destination().run("again", &guest);
    console.verifies_blocks();
    leaving.destination().stop("again");
    leaving.scene.pair.is_clean();
}
