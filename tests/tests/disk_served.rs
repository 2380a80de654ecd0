//! Guests that start before their disk is there: another process serves it, and it comes meanwhile.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::blackbox::moving_disk::{CHECK, Scene, holds_its_content, options_of};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Vms, eventually, guest_lock, images, kill};
use tests::process::Process;

/// A guest's disk at the host that it has left, which serves it.
struct Served {
    scene: Scene,
    /// Where the disk comes.
    here: PathBuf,
}

impl Served {
    fn new(here: &str) -> Self {
        let scene = Scene::verifying();
        scene.host().stop("guest");
        Self {
            here: scene.path(here),
            scene,
        }
    }

    /// Always the same command, but for the rate.
    fn serves(&self, rate: &str) -> Process {
        let image = self.scene.disk.display().to_string();
        let socket = format!("unix:{}", self.scene.path("s").display());
        let args = [
            "disk",
            "serve",
            &image,
            "--listen",
            &socket,
            "--id",
            "data",
            "--bandwidth",
            rate,
        ];
        let served = self.scene.host().spawn(args);
        eventually("it is served", || {
            let pid = self.listed()?["pid"].as_u64();
            (self.scene.path("s").exists() && pid.is_some()).then_some(())
        });
        served
    }

    fn listed(&self) -> Option<Value> {
        let run = self.scene.host().vmm(["disk", "serve", "--list", "--json"]);
        run.success().json_lines().pop()
    }

    fn missing(&self) -> u64 {
        let listed = self.listed().expect("a record");
        listed["missing"].as_u64().expect("bytes")
    }

    /// Makes the image here, which has nothing.
    fn begins(&self) {
        let listed = self.listed().expect("a record");
        let record = listed["record"].as_str().expect("a record").to_owned();
        let here = self.here.display().to_string();
        let format = match here.ends_with("qcow2") {
            true => "qcow2",
            false => "raw",
        };
        let args = [
            "disk", "pull", &here, "--from", &record, "--begin", "--format", format,
        ];
        let _ = self.scene.host().vmm(args).success();
    }

    /// Ends the guest's VM as a crash does.
    fn kills(&self) {
        self.scene.host().crash("guest");
    }

    /// Runs the guest from the image here, which verifies what it wrote where it was.
    fn runs(&mut self) {
        let options = options_of(&self.here);
        let guest = Guest::dirtying().disk_with(&self.here, options, CHECK);
        self.scene.console = self.scene.host().run("guest", &guest);
    }
}

#[test]
fn a_guest_starts_before_its_disk_is_here_and_goes_on_when_its_server_is_back() {
    let Some(_lock) = guest_lock() else { return };
    let mut served = Served::new("here.raw");
    let before = blake3::hash(&fs::read(&served.scene.disk).expect("image"));
    let server = served.serves("2MiB/s");
    served.begins();
    served.runs();
    served.scene.goes_on();
    assert!(
        served.missing() > 8 << 20,
        "it was here before the guest began"
    );
    // Neither goes on while it is in part.
    let leaves = ["migrate", "guest", "--to", "127.0.0.1:1"];
    let refused = served.scene.host().vmm(leaves).expect_code(1).stderr;
    assert!(refused.contains("disk.in-part"), "{refused}");

    kill(server.pid());
    let _killed = server.finish(PATIENCE);
    let server = served.serves("unlimited");
    served.scene.goes_on();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    assert_eq!(served.listed().expect("a record")["released"], true);
    served.scene.goes_on();
    served.scene.host().stop("guest");
    holds_its_content(&served.here);
    let after = blake3::hash(&fs::read(&served.scene.disk).expect("image"));
    assert_eq!(before, after, "the image that is served was written");
    // It is a disk as any other.
    served.scene.starts_anew_from(&served.here);
}

#[test]
fn a_guest_that_is_killed_before_its_disk_is_here_starts_again_from_what_is() {
    let Some(_lock) = guest_lock() else { return };
    let mut served = Served::new("here.qcow2");
    let server = served.serves("2MiB/s");
    served.begins();
    served.runs();
    served.scene.goes_on();
    served.kills();
    served.runs();
    served.scene.goes_on();
    served.kills();
    // And without a guest.
    kill(server.pid());
    let _killed = server.finish(PATIENCE);
    let server = served.serves("unlimited");
    let here = served.here.display().to_string();
    let _ = served.scene.host().vmm(["disk", "pull", &here]).success();
    let _ = server.finish(PATIENCE).expect("it is released").success();
    assert!(!images::map_of(&served.here).exists());
    let guest = Guest::dirtying().disk_with(&served.here, "id=data,format=qcow2", CHECK);
    served.scene.console = served.scene.host().run("guest", &guest);
    served.scene.goes_on();
    served.scene.host().stop("guest");
}
