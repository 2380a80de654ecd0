//! `vmm disk pull --from`: a disk that another host serves comes here, whatever is killed meanwhile.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;
#[path = "support/image.rs"]
mod image;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use block::on_demand::BLOCK;
use serde_json::Value;

use host::{Host, end_of, until};

/// Of which the last block is short.
const SIZE: u64 = 160 * BLOCK + 3 * 512;
/// So much of it that a server at its rate takes some seconds.
const HELD: u64 = 128;

/// Two hosts, one of which serves an image.
struct Scene {
    there: Host,
    here: Host,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let there = Host::new();
        let image = there.path().join("data.raw");
        image::make(&image, SIZE, 160);
        Self {
            here: Host::new(),
            image,
            there,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.here.path().join(name)
    }

    fn map(&self) -> PathBuf {
        self.path("here.vmm-map")
    }

    fn socket(&self) -> String {
        format!("unix:{}/s", self.there.path().display())
    }

    /// Serves the image, slowly for who is in no hurry.
    fn serves(&self, rate: &str) -> (Child, Value) {
        let (image, socket) = (self.image.display(), self.socket());
        let line = format!(
            "disk serve {image} --listen {socket} --id data --bandwidth {rate} --sandbox strict --json"
        );
        let mut child = self
            .there
            .command(&line)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        (child, serde_json::from_str(&line).expect(&line))
    }

    /// The first command, which makes the image; the record has been copied here.
    fn pulls_from(&self, told: &Value, more: &str) -> String {
        let record = self.path("record");
        fs::copy(told["record"].as_str().unwrap(), &record).unwrap();
        let (image, record) = (self.path("here").display().to_string(), record.display());
        format!("disk pull {image} --from {record} --json {more}")
    }

    fn missing_there(&self) -> u64 {
        let listed = self.there.json("disk serve --list --json");
        listed[0]["missing"].as_u64().unwrap()
    }

    /// What is here is what is there, and nothing is left of how it came.
    fn is_whole(&self, bytes: &[u8]) {
        assert!(
            bytes == fs::read(&self.image).unwrap(),
            "it is another disk"
        );
        assert!(!self.map().exists());
    }
}

fn killed(mut process: Child) {
    process.kill().unwrap();
    assert_eq!(end_of(process), None);
}

#[test]
fn a_disk_that_is_served_comes_here_whoever_is_killed_meanwhile() {
    let scene = Scene::new();
    let (server, told) = scene.serves("2MiB/s");
    let begins = scene.pulls_from(&told, "");
    let pulls = scene
        .here
        .command(&begins)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("a part has come", || {
        scene.missing_there() < (HELD - 40) * BLOCK
    });
    killed(pulls);
    let mode = fs::metadata(scene.map()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the map has the secret");
    let image = scene.path("here").display().to_string();
    // It is no disk of anybody.
    let refused = scene.here.vmm(&format!("disk move web:data --to {image}"));
    assert_ne!(refused.status.code(), Some(0));

    killed(server);
    // By the map alone; who serves comes back while it waits.
    let again = format!("disk pull {image} --json");
    let pulls = scene
        .here
        .command(&again)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (server, again) = scene.serves("unlimited");
    assert_eq!(again["migration"], told["migration"]);
    let pulled = pulls.wait_with_output().unwrap();
    assert_eq!(pulled.status.code(), Some(0), "{pulled:?}");
    let pulled: Value = serde_json::from_slice(&pulled.stdout).unwrap();
    assert_eq!(pulled["released"], true, "{pulled}");
    let fetched = pulled["fetched_bytes"].as_u64().unwrap();
    assert!(
        0 < fetched && fetched < HELD * BLOCK,
        "what was here came again: {pulled}"
    );
    assert_eq!(end_of(server), Some(0));
    scene.is_whole(&fs::read(scene.path("here")).unwrap());
    scene
        .here
        .fails(&format!("disk pull {image}"), 1, "vmm-map");
    // The same command does not write over what is a disk by now.
    scene.here.fails(&begins, 1, "disk.");
    scene.is_whole(&fs::read(scene.path("here")).unwrap());
}

#[test]
fn what_comes_may_be_of_another_format_and_from_another_address_than_recorded() {
    let scene = Scene::new();
    let (server, told) = scene.serves("unlimited");
    let moved = scene.there.path().join("t");
    let line = scene.pulls_from(
        &told,
        &format!("--format qcow2 --at unix:{}", moved.display()),
    );
    fs::rename(scene.there.path().join("s"), &moved).unwrap();
    let pulled = &scene.here.json(&line)[0];
    assert_eq!(pulled["released"], true, "{pulled}");
    assert_eq!(end_of(server), Some(0));
    let image = scene.path("here").display().to_string();
    let info = &scene.here.json(&format!("disk info {image} --json"))[0];
    assert_eq!(info["format"], "qcow2", "{info}");
    scene.here.ok(&format!("disk check {image}"));
    assert!(!scene.map().exists());
}

#[test]
fn nothing_is_made_of_a_disk_that_cannot_be_had() {
    let scene = Scene::new();
    let (server, told) = scene.serves("unlimited");
    let line = scene.pulls_from(&told, "");
    // Somebody is there who is told another secret.
    let record = scene.path("record");
    let mut wrong: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    wrong["secret"] = "00112233445566778899aabbccddeeff".into();
    fs::write(&record, wrong.to_string()).unwrap();
    scene.here.fails(&line, 1, "disk.origin");
    assert!(!scene.path("here").exists() && !scene.map().exists());
    // Nothing of it travels where others can read it, unless its user says so.
    let beyond = scene.pulls_from(&told, "--at 192.0.2.1:1");
    scene.here.fails(&beyond, 2, "usage.insecure");
    assert!(!scene.path("here").exists() && !scene.map().exists());
    // What is there already is not written over.
    let line = scene.pulls_from(&told, "");
    fs::write(scene.path("here"), "mine").unwrap();
    scene.here.fails(&line, 1, "disk.exists");
    assert_eq!(fs::read(scene.path("here")).unwrap(), b"mine");
    assert!(!scene.map().exists());
    killed(server);
}
