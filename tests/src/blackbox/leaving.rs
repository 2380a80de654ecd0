//! A guest that goes to another host before the content of its disk does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::moving_disk::{self, Scene};
use super::wait::PATIENCE;
use super::{Guest, Migration, Vms, crash, eventually};
use crate::Host;
use crate::process::Process;

/// Where it is listened, at any port.
pub const LISTEN: &str = "127.0.0.1:0";
/// Its disk is fetched when it is there.
pub const ON_DEMAND: &[&str] = &["--disks", "data=on-demand"];
/// And nothing that it does not ask for.
pub const NOT_BY_ITSELF: &[&str] = &["--disks", "data=on-demand,pull=off"];

/// Where nobody else listens or connects from, so that a port there is free when its server has been killed.
pub const SERVED_AT: &[&str] = &["--serve-at", "127.77.1.1:0"];

/// What an image holds.
///
/// # Panics
/// When it cannot be read.
pub fn hash(image: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(image).expect("image"))
}

/// A guest with a disk that only its host has, and another host.
pub struct Leaving {
    /// The guest, and both hosts.
    pub scene: Scene,
    /// Where the disk comes.
    pub there: PathBuf,
}

impl Leaving {
    /// With its disk to come into `there` of the other host.
    pub fn new(there: &str) -> Self {
        Self::of(Scene::verifying(), there)
    }

    /// The same of a guest that needs long until it has asked for all that it uses.
    pub fn slowly(there: &str) -> Self {
        let words = "block=verify,size=32M block_rate=200";
        Self::of(Scene::with(&Guest::dirtying(), words), there)
    }

    fn of(scene: Scene, there: &str) -> Self {
        let there = scene.pair.destination.path().join(there);
        Self { scene, there }
    }

    /// Where it was.
    pub fn here(&self) -> &Host {
        &self.scene.pair.source
    }

    /// Where it goes.
    pub fn destination(&self) -> &Host {
        &self.scene.pair.destination
    }

    /// Waits there for the guest, with storage that does as `change` has the process told.
    #[track_caller]
    pub fn receives_with(&self, change: impl FnOnce(&mut Command)) -> String {
        let disk = format!("data={},create", self.there.display());
        let args = [
            "receive", "--listen", LISTEN, "--name", "guest", "--detach", "--disk", &disk,
        ];
        let mut command = self.destination().command(args);
        change(&mut command);
        let run = self.destination().start(command).finish(PATIENCE);
        let _ = run.unwrap_or_else(|e| panic!("{e:#}")).success();
        let status = self.destination().status("guest");
        status["listen"].as_str().expect("address").to_owned()
    }

    /// The job there that brings what is missing, once it is as `fits` says.
    #[track_caller]
    pub fn job(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let args = ["disk", "jobs", "guest", "--json"];
        eventually("the job is so", || {
            let jobs = self.destination().vmm(args).success().json_lines();
            let job = jobs.into_iter().find(|job| job["kind"] == "disk-pull");
            job.filter(&fits)
        })
    }

    /// Waits there for the guest.
    #[track_caller]
    pub fn receives(&self, how: &[&str]) -> String {
        let disk = format!("data={},create", self.there.display());
        let disk = match self.there.extension().is_some_and(|it| it == "qcow2") {
            true => format!("{disk},format=qcow2"),
            false => disk,
        };
        let all = [&["--disk", &*disk], how].concat();
        self.destination().receive_with("guest", LISTEN, &all)
    }

    /// The guest goes; its report.
    #[track_caller]
    pub fn goes(&mut self, address: &str, how: &[&str]) -> Value {
        let how = [how, SERVED_AT].concat();
        let report = Migration::start(self.here(), "guest", address, &how)
            .finish()
            .completed();
        self.scene
            .console
            .moves_to(&self.scene.pair.destination, "guest");
        report
    }

    /// What is recorded of images that are served here.
    #[track_caller]
    pub fn served(&self) -> Vec<Value> {
        moving_disk::served(self.here())
    }

    /// What is missing there.
    #[track_caller]
    pub fn missing(&self) -> Option<Value> {
        moving_disk::missing(self.destination())
    }

    /// What is missing there, which is something.
    #[track_caller]
    pub fn lacks(&self) -> Value {
        self.missing().expect("something is missing")
    }

    /// Waits until it is told there why nothing comes.
    #[track_caller]
    pub fn is_told_why_nothing_comes(&self) -> String {
        eventually("it is told why nothing comes", || {
            self.lacks()["why"].as_str().map(str::to_owned)
        })
    }

    /// The process that serves it.
    #[track_caller]
    pub fn server(&self) -> u32 {
        let pid = self.served()[0]["pid"].as_u64().expect("a process");
        u32::try_from(pid).expect("pid")
    }

    /// Ends that as a crash does.
    #[track_caller]
    pub fn kills_server(&self) {
        crash(self.server());
        assert!(self.served()[0]["pid"].is_null());
    }

    /// Serves it again by the same command, which `change` changes.
    #[track_caller]
    pub fn serves_again(&self, change: impl FnOnce(&mut Command)) -> Process {
        let served = self.served().remove(0);
        let listen = served["listen"].as_str().expect("an address");
        let image = self.scene.disk.display().to_string();
        let again = ["disk", "serve", &image, "--listen", listen, "--id", "data"];
        let mut command = self.here().command(again);
        change(&mut command);
        let mut server = self.here().start(command);
        eventually("it is served again", || {
            assert!(server.is_running(), "{}", server.stderr());
            self.served()[0]["pid"].is_u64().then_some(())
        });
        server
    }

    /// Changes how the guest has what is missing.
    #[track_caller]
    pub fn pulls(&self, how: &[&str]) {
        let all = [&["disk", "pull", "guest:data"], how].concat();
        let _ = self.destination().vmm(all).success();
    }

    /// Waits until nothing is, and who served it knows.
    #[track_caller]
    pub fn becomes_whole(&self) {
        eventually("the disk is whole", || {
            self.missing().is_none().then_some(())
        });
        moving_disk::is_released(self.here());
    }
}
