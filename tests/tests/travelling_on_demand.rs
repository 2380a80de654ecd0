//! Guests that go to another host before the content of their disk does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::Host;
use tests::blackbox::moving_disk::{self, CHECK, Scene, allocated, holds_its_content, options_of};
use tests::blackbox::wait::PATIENCE;
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
        moving_disk::served(self.here())
    }

    /// What is missing there.
    fn missing(&self) -> Option<Value> {
        moving_disk::missing(self.destination())
    }

    /// Waits until nothing is, and who served it knows.
    #[track_caller]
    fn becomes_whole(&self) {
        eventually("the disk is whole", || {
            self.missing().is_none().then_some(())
        });
        moving_disk::is_released(self.here());
    }
}

#[test]
fn a_guest_goes_before_its_disk_does_and_fetches_each_block_once() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    // Nobody serves it for being asked whether it would work.
    let plan = [
        "migrate",
        "guest",
        "--to",
        &address,
        "--disks",
        "on-demand",
        "--plan",
    ];
    let _ = leaving.here().vmm(plan).success();
    assert_eq!(leaving.served(), Vec::<Value>::new());
    // Nor is who was left of an earlier attempt in its way.
    let image = first.display().to_string();
    let waits = [
        "disk",
        "serve",
        &image,
        "--when-guest-has-gone",
        "--listen",
        LISTEN,
    ];
    let earlier = leaving.here().spawn(waits);
    eventually("an earlier one waits", || {
        let served = leaving.served();
        (served.first()?["awaiting"] == true).then_some(())
    });
    let report = leaving.goes(&address, ON_DEMAND);
    let _ended = earlier.finish(PATIENCE);
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

#[test]
fn whoever_of_both_ends_is_killed_after_the_commit_goes_on_where_it_was() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.qcow2");
    let first = leaving.scene.disk.clone();
    let address = leaving.receives(&[]);
    let _ = leaving.goes(&address, NOT_BY_ITSELF);
    leaving.scene.console.verifies_blocks();
    let before = hash(&first);
    // Far from all: what the guest does not touch is not there.
    let missing = leaving.missing().expect("something is missing");
    assert!(missing["bytes"].as_u64() > Some(48 << 20), "{missing}");
    let served = leaving.served().remove(0);
    assert_eq!(missing["from"], served["listen"], "{served}");
    let leaves = ["migrate", "guest", "--to", "127.0.0.1:1"];
    let refused = leaving.destination().vmm(leaves).expect_code(1).stderr;
    assert!(refused.contains("disk.in-part"), "{refused}");

    // The guest's host: what it was told is done is there when it runs again, and what it lacks comes.
    leaving.destination().crash("guest");
    let options = options_of(&leaving.there);
    let guest = Guest::dirtying().disk_with(&leaving.there, options, CHECK);
    leaving.scene.console = leaving.destination().run("guest", &guest);
    leaving.scene.console.verifies_blocks();

    // Who serves it: what is there goes on, and it is told what is missing from whom.
    let pid = served["pid"].as_u64().expect("a process");
    kill(u32::try_from(pid).expect("pid"));
    eventually("nobody serves it", || {
        leaving.served()[0]["pid"].is_null().then_some(())
    });
    let image = first.display().to_string();
    let listen = served["listen"].as_str().expect("an address").to_owned();
    let again = ["disk", "serve", &image, "--listen", &listen, "--id", "data"];
    let server = leaving.here().spawn(again);
    eventually("it is served again", || {
        leaving.served()[0]["pid"].is_u64().then_some(())
    });
    leaving.scene.console.verifies_blocks();
    leaving.destination().stop("guest");
    let there = leaving.there.display().to_string();
    let _ = leaving
        .destination()
        .vmm(["disk", "pull", &there])
        .success();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    assert_eq!(
        hash(&first),
        before,
        "the image that was served was written"
    );
    let _ = leaving
        .destination()
        .vmm(["disk", "check", &there])
        .success();
    let guest = Guest::idle().disk_with(&leaving.there, options, CHECK);
    let mut console = leaving.destination().run("again", &guest);
    console.verifies_blocks();
    leaving.destination().stop("again");
    leaving.destination().is_swept();
}

/// Slow enough that there is time to do something before the commit.
const SLOW: &[&str] = &[
    "--disks",
    "data=on-demand",
    "--bandwidth",
    "4MiB/s",
    "--downtime-limit",
    "1us",
    "--reconnect-for",
    "0s",
];

#[test]
fn whatever_ends_it_before_the_commit_leaves_the_guest_and_nothing_else() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let is_as_before = |leaving: &mut Leaving| {
        leaving.scene.console.verifies_blocks();
        assert_eq!(leaving.served(), Vec::<Value>::new());
        // The guest's alone.
        assert_eq!(leaving.here().processes().len(), 1);
        holds("nothing is left there", || {
            !leaving.there.exists() && !images::map_of(&leaving.there).exists()
        });
    };
    // Its user cancels it; its server is killed.
    for killed in [false, true] {
        let address = leaving.receives(&[]);
        let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
        moving.wait_progress();
        let served = leaving.served().remove(0);
        assert_eq!(served["awaiting"], true, "{served}");
        match killed {
            false => moving.interrupt(),
            true => {
                let pid = served["pid"].as_u64().expect("a process");
                kill(u32::try_from(pid).expect("pid"));
            }
        }
        let ended = moving.finish();
        assert_eq!(ended.report["status"], "cancelled", "{}", ended.err);
        is_as_before(&mut leaving);
        let _ = leaving.destination().vmm(["stop", "guest", "--force"]);
        holds("nobody waits there", || {
            leaving.destination().processes().is_empty()
        });
    }
    // Whoever asked for it is killed: it goes on, and its server with it.
    let address = leaving.receives(&[]);
    let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
    moving.wait_progress();
    moving.kill();
    let faster = [
        "migrate",
        "guest",
        "--set",
        "bandwidth=unlimited,downtime-limit=1s",
    ];
    let _ = leaving.here().vmm(faster).success();
    leaving
        .scene
        .console
        .moves_to(&leaving.scene.pair.destination, "guest");
    leaving.scene.console.verifies_blocks();
    leaving.becomes_whole();
    leaving.destination().stop("guest");
    leaving.scene.pair.is_clean();
}

#[test]
fn a_source_that_is_killed_before_the_commit_has_its_guest_run_again_from_its_image() {
    let Some(_lock) = guest_lock() else { return };
    let mut leaving = Leaving::new("there.raw");
    let address = leaving.receives(&[]);
    let mut moving = Migration::start(leaving.here(), "guest", &address, SLOW);
    moving.wait_progress();
    leaving.here().crash("guest");
    let _ = moving.finish();
    let first = leaving.scene.disk.clone();
    leaving.scene.is_run_again_from(&first);
    assert_eq!(leaving.served(), Vec::<Value>::new());
    leaving.scene.host().stop("guest");
    leaving.scene.host().is_swept();
}
