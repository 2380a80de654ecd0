//! `vmm disk serve`: a process that serves an image, and a disk elsewhere that takes what it lacks from it.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;
#[path = "support/image.rs"]
mod image;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, OnceLock, Weak};

use block::copy::Steering;
use block::on_demand::{About, BLOCK, OnDemand, Origin, OriginError, Policy, PresenceMap, Pull};
use block::{Access, BlockDevice, Buffer, Content, Durability, ExtentKind, RawImage};
use machine::serving::{PulledOrigin, ServingRecord};
use migration::address::Address;
use migration::endpoint::Endpoint;
use migration::pull::Presence;
use migration::transport::socket::SocketConnect;
use migration::wire::hello::{Hello, Role};
use migration::wire::pull::{End, Frame, PULL_LEN, PullHeader, Refusal};
use migration::{MigrationId, PullSecret};
use serde_json::Value;

use host::{Host, LIMIT, end_of, until};

/// Of which the last block is short.
const SIZE: u64 = 40 * BLOCK + 3 * 512;
const BLOCKS: u64 = 41;

/// What `block` of the image holds.
fn content(block: u64) -> Vec<u8> {
    image::content(block, SIZE)
}

/// A host with an image that is served, always by the same command.
struct Scene {
    host: Host,
    image: PathBuf,
    socket: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let host = Host::new();
        let image = host.path().join("data.raw");
        image::make(&image, SIZE, BLOCKS);
        Self {
            // Sockets have short names.
            socket: host.path().join("s"),
            image,
            host,
        }
    }

    fn command(&self) -> String {
        let (image, socket) = (self.image.display(), self.socket.display());
        format!(
            "disk serve {image} --listen unix:{socket} --id data --for web@b --sandbox strict --json"
        )
    }

    /// The process, when it serves.
    fn serves(&self) -> (Child, Value) {
        let mut command = self.host.command(&self.command());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!(told["event"], "serving", "{told}");
        (child, told)
    }

    fn listed(&self) -> Value {
        let mut listed = self.host.json("disk serve --list --json");
        assert_eq!(listed.len(), 1, "{listed:?}");
        listed.remove(0)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::numeric(Address::Unix(self.socket.clone())).unwrap()
    }

    fn origin(
        &self,
        secret: (MigrationId, PullSecret),
        presence: Arc<dyn Presence>,
    ) -> PulledOrigin {
        let connect = Box::new(SocketConnect::new(self.endpoint()).unwrap());
        PulledOrigin::new(connect, secret, "data", SIZE, presence).unwrap()
    }

    fn is_as_it_was(&self) {
        let bytes = fs::read(&self.image).unwrap();
        let expected: Vec<u8> = (0..BLOCKS).flat_map(content).collect();
        assert!(bytes == expected, "the image has changed");
    }
}

/// What the client is given of the record.
fn secret_of(told: &Value) -> (MigrationId, PullSecret) {
    let text = fs::read(told["record"].as_str().unwrap()).unwrap();
    let record: ServingRecord = serde_json::from_slice(&text).unwrap();
    (record.id().unwrap(), record.secret)
}

/// What a disk has, once there is one.
#[derive(Default)]
struct OfDisk(OnceLock<Weak<OnDemand>>);

impl Presence for OfDisk {
    fn is_present(&self, _: usize, unit: u64) -> bool {
        let Some(disk) = self.0.get().and_then(Weak::upgrade) else {
            return false;
        };
        let offset = unit * BLOCK;
        let extents = disk.extents(offset, BLOCK.min(SIZE - offset), 1).unwrap();
        extents[0].kind != ExtentKind::Absent
    }
}

/// A disk elsewhere that lacks all of it.
struct Elsewhere {
    disk: Arc<OnDemand>,
    origin: Arc<PulledOrigin>,
}

fn image_of(dir: &Path, name: &str, size: u64) -> Arc<RawImage> {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    Arc::new(RawImage::open(&path, Access::ReadWrite, Content::Container).unwrap())
}

/// Asks again for as long as the host cannot be had.
fn again<T>(mut ask: impl FnMut() -> Result<T, OriginError>) -> T {
    let mut done = None;
    until("the host that serves answers", || match ask() {
        Ok(answer) => {
            done = Some(answer);
            true
        }
        Err(OriginError::Lost { .. }) => false,
        Err(error) => panic!("{error}"),
    });
    done.unwrap()
}

impl Elsewhere {
    fn new(scene: &Scene, told: &Value, dir: &Path) -> Self {
        let presence = Arc::<OfDisk>::default();
        let origin = Arc::new(scene.origin(secret_of(told), presence.clone()));
        let allocation = again(|| origin.allocation());
        let holds = (0..BLOCKS).filter(|block| allocation.has(block * BLOCK));
        let expected = (0..BLOCKS).filter(|block| !image::is_hole(*block));
        assert!(holds.eq(expected), "{allocation:?}");
        let about = About {
            disk: SIZE,
            id: [1; 16],
            note: Vec::new(),
        };
        let storage = image_of(dir, "map", PresenceMap::length(SIZE));
        let map = PresenceMap::create(storage, about, &allocation).unwrap();
        let policy = Policy {
            pull: Pull::Off,
            ..Policy::default()
        };
        let disk = OnDemand::new(
            image_of(dir, "here.raw", SIZE),
            map,
            origin.clone(),
            policy,
            Arc::new(Steering::new(None, LIMIT)),
            || {},
        );
        let disk = Arc::new(disk.unwrap());
        presence.0.set(Arc::downgrade(&disk)).unwrap();
        Self { disk, origin }
    }

    /// Reads a block, as soon as it has come.
    fn reads(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0x55; content(block).len()];
        until("a block comes", || {
            match self.disk.read(&[Buffer::new(&mut bytes)], block * BLOCK) {
                Ok(()) => true,
                Err(error) if error.is_for_now() => false,
                Err(error) => panic!("{error}"),
            }
        });
        bytes
    }
}

#[test]
fn a_disk_comes_whole_while_its_server_is_killed_and_started_again() {
    let scene = Scene::new();
    let dir = tempfile::tempdir().unwrap();
    let (mut server, told) = scene.serves();
    assert_eq!(told["missing"], SIZE);
    let there = Elsewhere::new(&scene, &told, dir.path());
    for block in 0..8 {
        assert!(there.reads(block) == content(block), "block {block}");
    }
    // A write that covers a block is never asked for, nor replaced.
    let mut own = vec![0xee; BLOCK as usize];
    let written = there
        .disk
        .write(&[Buffer::new(&mut own)], 20 * BLOCK, Durability::Flushed);
    written.unwrap();

    server.kill().unwrap();
    end_of(server);
    let listed = scene.listed();
    assert_eq!(
        (&listed["pid"], &listed["released"]),
        (&Value::Null, &false.into())
    );
    let mut waits = [0x55; 512];
    let absent = there.disk.read(&[Buffer::new(&mut waits)], 10 * BLOCK);
    assert!(absent.unwrap_err().is_for_now());

    let (server, again) = scene.serves();
    assert_eq!(again["migration"], told["migration"]);
    for block in 8..BLOCKS {
        match block {
            20 => assert!(there.reads(block) == own),
            _ => assert!(there.reads(block) == content(block), "block {block}"),
        }
    }
    assert!(there.disk.wait_whole(LIMIT));
    assert_eq!(there.disk.finish().unwrap(), 0);
    there.origin.finish(LIMIT).unwrap();
    let mut said = String::new();
    let mut server = server;
    server
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(end_of(server), Some(0));
    assert!(said.contains("\"event\":\"released\""), "{said}");
    assert_eq!(scene.listed()["released"], true);
    scene.is_as_it_was();
    // The same command, as after a reboot, serves nobody any more.
    let after = &scene.host.json(&scene.command())[0];
    assert_eq!(
        (&after["released"], &after["event"]),
        (&true.into(), &Value::Null)
    );
}

#[test]
fn who_depends_on_an_image_and_what_it_lacks_is_listed_and_nobody_writes_it_meanwhile() {
    let scene = Scene::new();
    let dir = tempfile::tempdir().unwrap();
    let (server, told) = scene.serves();
    let there = Elsewhere::new(&scene, &told, dir.path());
    for block in 0..10 {
        there.reads(block);
    }
    // Two of these ten are holes, as are six of the others; the client has told of those on its first link if it was quick.
    until("it is listed what is missing", || {
        let missing = scene.listed()["missing"].as_u64().unwrap();
        missing <= SIZE - 8 * BLOCK
    });
    let listed = scene.listed();
    assert_eq!(listed["client"], "web@b");
    assert_eq!(listed["pid"], server.id());
    assert!(listed.get("secret").is_none());
    let image = scene.image.display();
    let resize = format!("disk resize {image} --size 1MiB --shrink");
    scene.host.fails(&resize, 1, "disk.");
    scene.host.fails(&scene.command(), 1, "serve.in-use");
    let forget = format!("disk serve {image} --forget");
    scene.host.fails(&forget, 1, "serve.in-use");
    scene.is_as_it_was();

    let any_port = format!("disk serve {image} --listen 127.0.0.1:0");
    scene.host.fails(&any_port, 2, "usage.disk");

    let mut server = server;
    server.kill().unwrap();
    end_of(server);
    let other = scene.command().replace("--id data", "--id root");
    scene.host.fails(&other, 1, "serve.another");
    // A program that has changed it meanwhile is noticed by its size at least.
    let file = OpenOptions::new().write(true).open(&scene.image).unwrap();
    file.set_len(SIZE - 512).unwrap();
    scene.host.fails(&scene.command(), 1, "serve.another");
    scene.host.ok(&forget);
    scene.host.fails(&forget, 1, "serve.no-record");
    assert!(scene.host.json("disk serve --list --json").is_empty());
}

#[test]
fn strangers_get_nothing_and_are_in_nobodys_way() {
    let scene = Scene::new();
    let (mut server, told) = scene.serves();
    let (id, secret) = secret_of(&told);
    let hello = |role, id, token| Hello::new(role, id, token).encode().to_vec();
    let pull = Role::Pull { lane: 0 };
    let mut almost = secret.0;
    almost[15] ^= 1;
    for hello in [
        hello(pull, id, almost),
        hello(pull, id, [0; 16]),
        hello(pull, MigrationId([9; 16]), secret.0),
        hello(Role::Control, id, secret.0),
        hello(Role::Pull { lane: 8 }, id, secret.0),
    ] {
        let mut stranger = UnixStream::connect(&scene.socket).unwrap();
        stranger.set_read_timeout(Some(LIMIT)).unwrap();
        stranger.write_all(&hello).unwrap();
        let mut said = Vec::new();
        // The server may have closed the connection before it has read all of it.
        let _ = stranger.read_to_end(&mut said);
        let said: [u8; PULL_LEN] = said.try_into().expect("one frame");
        let header: PullHeader = zerocopy::transmute!(said);
        let frame = header.frame(End::Server).unwrap();
        assert_eq!(frame, Frame::Refused(Refusal::Stranger));
    }
    let mut silent = Vec::new();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[]] {
        let mut stranger = UnixStream::connect(&scene.socket).unwrap();
        let _ = stranger.write_all(garbage);
        silent.push(stranger);
    }
    let client = scene.origin((id, secret), Arc::<OfDisk>::default());
    let mut bytes = vec![0; BLOCK as usize];
    again(|| client.fetch(BLOCK, &mut bytes, block::on_demand::Class::Demand));
    assert!(bytes == content(1));
    let wrong = scene.origin((id, PullSecret(almost)), Arc::<OfDisk>::default());
    until("the client is told why", || {
        let fetched = wrong.fetch(0, &mut bytes, block::on_demand::Class::Demand);
        let why = fetched.unwrap_err().to_string();
        why.contains("serves nothing to who has this identifier and secret")
    });
    server.kill().unwrap();
    end_of(server);
    drop(silent);
}
