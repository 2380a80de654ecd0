//! Guests that move again before the disk is whole that they came with.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::Host;
use tests::blackbox::leaving::{LISTEN, NOT_BY_ITSELF, ON_DEMAND, SERVED_AT};
use tests::blackbox::moving_disk::{CHECK, Scene, holds_its_content, missing, options_of, served};
use tests::blackbox::wait::PATIENCE;
use tests::blackbox::{Guest, Migration, Vms, eventually, guest_lock, images, kill};
use tests::process::Process;

/// More than the guest ever touches, and less than it leaves.
const TOUCHED: u64 = 16 << 20;

/// A guest that has gone from A to B, where its disk has what it has touched, and nothing else comes.
struct AtB {
    scene: Scene,
    /// Its image at B.
    image: PathBuf,
}

impl AtB {
    fn new(image: &str) -> Self {
        let mut scene = Scene::verifying();
        let b = &scene.pair.destination;
        let image = b.path().join(image);
        let address = waits(b, &image, &[]);
        goes(&scene.pair.source, &address, NOT_BY_ITSELF);
        scene.console.moves_to(b, "guest");
        scene.console.verifies_blocks();
        let lacks = missing(b).expect("something is missing");
        assert!(lacks["bytes"].as_u64() > Some(48 << 20), "{lacks}");
        Self { scene, image }
    }

    fn a(&self) -> &Host {
        &self.scene.pair.source
    }

    fn b(&self) -> &Host {
        &self.scene.pair.destination
    }
}

/// Waits for the guest, whose disk is to be at `image`.
fn waits(host: &Host, image: &Path, how: &[&str]) -> String {
    let disk = format!("data={},create", image.display());
    let disk = match image.extension().is_some_and(|it| it == "qcow2") {
        true => format!("{disk},format=qcow2"),
        false => disk,
    };
    host.receive_with("guest", LISTEN, &[&["--disk", &*disk], how].concat())
}

fn goes(from: &Host, address: &str, how: &[&str]) {
    let how = [how, SERVED_AT].concat();
    let moved = Migration::start(from, "guest", address, &how).finish();
    let _report = moved.completed();
}

/// What is missing at `host` of what each of `sources` serves.
fn missing_from(host: &Host, sources: [&Host; 2]) -> [u64; 2] {
    let missing = missing(host).unwrap_or_default();
    let all = missing["sources"].as_array().cloned().unwrap_or_default();
    sources.map(|source| {
        let at = served(source)[0]["listen"].clone();
        let found = all.iter().find(|found| found["from"] == at);
        found.map_or(0, |found| found["bytes"].as_u64().expect("bytes"))
    })
}

/// Waits until the image that is served at `host` is needed no more, and spares its server the time for late questions.
#[track_caller]
fn is_needed_no_more(host: &Host) {
    eventually("its server is told so", || {
        (served(host)[0]["released"] == true).then_some(())
    });
    let server = served(host).remove(0);
    if server["pid"].is_u64() {
        kill(pid_of(&server));
    }
}

fn pid_of(server: &Value) -> u32 {
    let pid = server["pid"].as_u64().expect("a process");
    u32::try_from(pid).expect("pid")
}

/// Serves an image again as it was.
fn serves_again(host: &Host, image: &Path, as_before: &Value, more: &[&str]) -> Process {
    let listen = as_before["listen"].as_str().expect("an address");
    let image = image.display().to_string();
    let again = ["disk", "serve", &image, "--listen", listen, "--id", "data"];
    host.spawn([&again[..], more].concat())
}

#[test]
fn a_disk_that_moves_twice_has_its_blocks_from_both_hosts_and_releases_them() {
    let Some(_lock) = guest_lock() else { return };
    let mut at = AtB::new("b.qcow2");
    let c = Host::new().expect("a host");
    let image = c.path().join("c.raw");
    let address = waits(&c, &image, &["--max-inbound", "8MiB/s"]);
    // Not by another mode: a part of it is not here.
    let refused = at.b().vmm(["migrate", "guest", "--to", &address]);
    let refused = refused.expect_code(1).stderr;
    assert!(
        refused.contains("disk.in-part") && refused.contains("on-demand"),
        "{refused}"
    );
    goes(at.b(), &address, ON_DEMAND);
    at.scene.console.moves_to(&c, "guest");
    let at_b = served(at.b()).remove(0);
    let [from_b, from_a] = eventually("A is known to have a part", || {
        let found = missing_from(&c, [at.b(), at.a()]);
        (found[1] > 0).then_some(found)
    });
    assert!(from_b < TOUCHED && from_a < 64 << 20, "{from_b}, {from_a}");

    // Neither a crash there, nor that who serves the newer part is away, makes it forget of whom it needs what: all that the other
    // one has comes, and that is released.
    kill(pid_of(&at_b));
    c.crash("guest");
    let guest = Guest::dirtying().disk_with(&image, options_of(&image), CHECK);
    at.scene.console = c.run("guest", &guest);
    is_needed_no_more(at.a());
    let server = serves_again(at.b(), &at.image, &at_b, &["--format", "qcow2"]);
    let at_rest = at.image.display().to_string();
    at.scene.console.verifies_blocks();
    at.scene.console.verifies_ledger();

    eventually("the disk is whole", || missing(&c).is_none().then_some(()));
    is_needed_no_more(at.b());
    let _ended = server.finish(PATIENCE);
    // Nobody runs, nor completes, what it has left, which lacks most.
    let options = format!("{at_rest},format=qcow2");
    let run = ["run", "refused", "--detach", "--disk", &options];
    let said = at.b().vmm(run).expect_code(1).stderr;
    assert!(said.contains("the guest went to"), "{said}");
    let said = at.b().vmm(["disk", "pull", &at_rest]).expect_code(1).stderr;
    assert!(said.contains("the guest went to"), "{said}");
    at.scene.console.verifies_blocks();
    c.stop("guest");
    holds_its_content(&image);
    let guest = Guest::idle().disk_with(&image, options_of(&image), CHECK);
    let mut console = c.run("again", &guest);
    console.verifies_blocks();
    c.stop("again");
    at.a().is_swept();
    at.b().is_swept();
    c.is_swept();
}

#[test]
fn a_guest_that_comes_back_has_what_was_written_elsewhere_and_the_rest_from_its_old_image() {
    let Some(_lock) = guest_lock() else { return };
    let mut at = AtB::new("b.raw");
    let first = at.scene.disk.clone();
    let before = blake3::hash(&fs::read(&first).expect("image"));
    let back = at.a().path().join("back.raw");
    let address = waits(at.a(), &back, &[]);
    // What only the old image has does not come for now.
    let at_a = served(at.a()).remove(0);
    kill(pid_of(&at_a));
    goes(at.b(), &address, ON_DEMAND);
    at.scene.console.moves_to(&at.scene.pair.source, "guest");
    let at_b = served(at.b()).remove(0);
    assert!(at_b["missing"].as_u64() < Some(TOUCHED), "{at_b}");
    // Nothing else crosses the wire than what B had.
    is_needed_no_more(at.b());
    let lacks = missing(at.a()).expect("something is missing");
    assert!(lacks["bytes"].as_u64() > Some(40 << 20), "{lacks}");
    assert_eq!(lacks["from"], at_a["listen"], "{lacks}");

    // B is not asked any more, whatever happens.
    at.a().crash("guest");
    let server = serves_again(at.a(), &first, &at_a, &[]);
    let path = back.display().to_string();
    let _ = at.a().vmm(["disk", "pull", &path]).success();
    is_needed_no_more(at.a());
    let _ended = server.finish(PATIENCE);
    assert_eq!(blake3::hash(&fs::read(&first).expect("image")), before);
    assert!(!images::map_of(&back).exists());
    holds_its_content(&back);
    let guest = Guest::idle().disk_with(&back, options_of(&back), CHECK);
    let mut console = at.a().run("again", &guest);
    console.verifies_blocks();
    at.a().stop("again");
    at.a().is_swept();
    at.b().is_swept();
}
