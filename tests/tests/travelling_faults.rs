//! Storage that fails, is slow or hangs on either side while a disk travels: the guest stays with its disk, nothing of it
//! is left, and the same migration works as soon as the storage does.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::blackbox::{Console, Guest, Migration, Pair, Vms, fails, guest_lock};
use tests::{Host, skip};

const LISTEN: &str = "127.0.0.1:0";
const SIZE: u64 = 64 << 20;
/// Behind what the guest uses.
const CONTENT: u64 = 48 << 20;
const VERIFY: &str = "block=verify,size=4M block_rate=400";
const PRECOPY: &[&str] = &["--disks", "precopy"];
/// So that there is time to do something while it copies.
const SLOW: &[&str] = &["--disks", "precopy", "--bandwidth", "8MiB/s"];
/// Names the file that orders faults of disks, see docs/testing.md.
const ORDERS: &str = "VMM_DEBUG_DISK_FAULTS";

/// Two hosts whose storage does as it is told, and a guest with a disk on the first one.
struct Scene {
    pair: Pair,
    disk: PathBuf,
    there: PathBuf,
    console: Console,
    receivers: u32,
}

fn orders(host: &Host) -> PathBuf {
    host.path().join("disk-faults")
}

/// Has the storage of `host` do so from now on.
fn order(host: &Host, faults: &str) {
    fs::write(orders(host), faults).expect("orders");
}

impl Scene {
    fn new() -> Self {
        Self::with_content(4 << 20)
    }

    /// With so many bytes on the disk that the guest does not use.
    fn with_content(content: usize) -> Self {
        let pair = Pair::new();
        order(&pair.source, "");
        order(&pair.destination, "");
        let disk = pair.source.path().join("data.raw");
        let file = File::create(&disk).expect("image");
        file.set_len(SIZE).expect("size");
        file.write_all_at(&vec![0xc7; content], CONTENT)
            .expect("content");
        let guest = Guest::dirtying().disk_with(&disk, "id=data", VERIFY);
        let mut console = pair.source.run_with("guest", &guest, |command| {
            command.env(ORDERS, orders(&pair.source));
        });
        console.verifies_blocks();
        Self {
            there: pair.destination.path().join("there.raw"),
            pair,
            disk,
            console,
            receivers: 0,
        }
    }

    /// Waits at the destination for the guest, whose disk is put there as `how` says; name and address.
    #[track_caller]
    fn receives(&mut self, how: &str) -> (String, String) {
        self.receivers += 1;
        let host = &self.pair.destination;
        let name = format!("there-{}", self.receivers);
        let disk = format!("data={},{how}", self.there.display());
        let args = [
            "receive", "--listen", LISTEN, "--name", &name, "--detach", "--disk", &disk,
        ];
        let mut command = host.command(args);
        command.env(ORDERS, orders(host));
        let run = host.start(command).finish(tests::blackbox::wait::PATIENCE);
        let _ = run.unwrap_or_else(|e| panic!("{e:#}")).success();
        let address = host.status(&name)["listen"]
            .as_str()
            .expect("address")
            .to_owned();
        (name, address)
    }

    /// The guest goes on with its disk where it was, and nothing of it is left at the destination.
    #[track_caller]
    fn stays(&mut self, receiver: &str) {
        self.pair.destination.waits_no_more(receiver);
        assert!(!self.there.exists(), "what was made is left");
        self.console.verifies_blocks();
        self.console.verifies_ledger();
    }

    /// Moves the guest, which goes on there; all ends.
    #[track_caller]
    fn moves(mut self) {
        let (name, address) = self.receives("create");
        let _ = Migration::start(&self.pair.source, "guest", &address, PRECOPY)
            .finish()
            .completed();
        self.console.moves_to(&self.pair.destination, &name);
        self.console.verifies_blocks();
        self.console.verifies_ledger();
        let content = |path: &Path| {
            let bytes = fs::read(path).expect("image");
            bytes[16 << 20..].to_vec()
        };
        assert!(
            content(&self.disk) == content(&self.there),
            "content differs"
        );
        self.pair.destination.stop(&name);
        self.pair.is_clean();
    }
}

#[test]
fn storage_that_fails_on_either_side_leaves_the_guest_where_it_was() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let at_source = [
        ("data read EIO 50331648+1048576\n", "disk.io"),
        ("data map EIO 50331648+1048576\n", "disk.io"),
    ];
    let at_destination = [
        ("data write EIO 50331648+65536\n", "disk.write"),
        ("data write ENOSPC\n", "disk.write"),
        ("data flush EIO\n", "disk.flush"),
        ("data open EIO\n", "disk.open"),
    ];
    let here = at_source.map(|(faults, id)| (true, faults, id));
    let there = at_destination.map(|(faults, id)| (false, faults, id));
    for (is_source, faults, id) in here.into_iter().chain(there) {
        let (name, address) = scene.receives("create");
        let host = match is_source {
            true => &scene.pair.source,
            false => &scene.pair.destination,
        };
        order(host, faults);
        let ended = Migration::start(&scene.pair.source, "guest", &address, PRECOPY).finish();
        ended.ended(1, "failed");
        let ids = tests::matrix::verdict::chain(&ended.report["error"]);
        assert!(ids.iter().any(|it| it == id), "{faults}: {ids:?}");
        order(host, "");
        scene.stays(&name);
    }
    scene.moves();
}

/// Not by order: the file system of the destination is full, after it had been found to have room.
#[test]
fn a_destination_that_runs_out_of_space_in_the_middle_gives_back_what_it_took() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let folder = scene.pair.destination.path().join("small");
    fs::create_dir(&folder).expect("folder");
    let Some(_mounted) = Mounted::at(&folder, "10M") else {
        println!(
            "{}",
            skip::line(format_args!("no file system can be mounted here"))
        );
        scene.pair.source.stop("guest");
        return;
    };
    scene.there = folder.join("there.raw");
    let (name, address) = scene.receives("create");
    let mut migration = Migration::start(&scene.pair.source, "guest", &address, SLOW);
    migration.wait_progress();
    let other = folder.join("other");
    let filled = fs::write(&other, vec![1; 12 << 20]);
    assert!(filled.is_err(), "it has room for all");
    let text = migration.finish().ended(1, "failed");
    assert!(
        text.contains("no space") || text.contains("space left"),
        "{text}"
    );
    fs::remove_file(&other).expect("room again");
    scene.stays(&name);
    scene.moves();
}

/// A file system in memory, until this is dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn at(folder: &'a Path, size: &str) -> Option<Self> {
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        let mount = mount
            .args(["-t", "tmpfs", "-o", &size, "vmm-test"])
            .arg(folder);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_migration_onto_storage_that_hangs_is_cancelled_and_works_when_it_answers_again() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let (name, address) = scene.receives("create");
    order(&scene.pair.destination, "data write hang 50331648+65536\n");
    let mut migration = Migration::start(&scene.pair.source, "guest", &address, SLOW);
    migration.wait_progress();
    // The guest knows nothing of it.
    scene.console.verifies_blocks();
    migration.interrupt();
    let _ = migration.finish().ended(4, "cancelled");
    scene.console.verifies_ledger();
    order(&scene.pair.destination, "");
    scene.stays(&name);
    scene.moves();
}

/// Requests that are under way keep the tracker where it is; the next migration takes it over.
#[test]
fn a_source_whose_storage_hangs_can_be_moved_when_it_answers_again() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    let (name, address) = scene.receives("create");
    let mut migration = Migration::start(&scene.pair.source, "guest", &address, SLOW);
    migration.wait_progress();
    order(&scene.pair.source, "data write hang\ndata flush hang\n");
    scene.console.waits_for_disk();
    migration.interrupt();
    let _ = migration.finish().ended(4, "cancelled");
    order(&scene.pair.source, "");
    scene.console.knows_of_disk_faults();
    scene.stays(&name);
    scene.moves();
}

#[test]
fn a_destination_whose_storage_answers_late_is_waited_for() {
    let Some(_lock) = guest_lock() else { return };
    // More than the sockets between them hold, so that the source has to wait.
    let mut scene = Scene::with_content(16 << 20);
    let (name, address) = scene.receives("create");
    // Longer than a peer may be silent.
    order(
        &scene.pair.destination,
        "data write slow=12000 50331648+4096\n",
    );
    let migration = Migration::start(&scene.pair.source, "guest", &address, PRECOPY);
    let report = migration.finish().completed();
    assert_eq!(report["verified"], true, "{report:#}");
    scene.console.moves_to(&scene.pair.destination, &name);
    scene.console.verifies_blocks();
    scene.pair.destination.stop(&name);
    scene.pair.is_clean();
}

/// What was written over and did not come whole is not taken for a disk.
#[test]
fn an_image_that_was_to_be_written_over_tells_that_its_guest_did_not_come() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    File::create(&scene.there)
        .and_then(|file| file.set_len(SIZE))
        .expect("image");
    let (name, address) = scene.receives("existing");
    let mut migration = Migration::start(&scene.pair.source, "guest", &address, SLOW);
    migration.wait_progress();
    migration.interrupt();
    let _ = migration.finish().ended(4, "cancelled");
    scene.pair.destination.waits_no_more(&name);
    let image = scene.there.display().to_string();
    let run = scene
        .pair
        .destination
        .vmm(["run", "stale", "--detach", "--disk", &image]);
    fails(run, 1, &["a guest that did not come", "--use-stale"]);
    // The same works at once; also into a new image in its place.
    let (name, address) = scene.receives("existing");
    let _ = Migration::start(&scene.pair.source, "guest", &address, PRECOPY)
        .finish()
        .completed();
    scene.console.moves_to(&scene.pair.destination, &name);
    scene.console.verifies_blocks();
    scene.pair.destination.stop(&name);
    let run = scene
        .pair
        .destination
        .vmm(["run", "after", "--detach", "--disk", &image]);
    let _ = run.success();
    scene.pair.destination.stop("after");
    scene.pair.is_clean();
}

#[test]
fn a_guest_that_ends_while_its_disk_travels_has_it_where_it_ended() {
    let Some(_lock) = guest_lock() else { return };
    let mut scene = Scene::new();
    // By a reset, which ends its VM, and by itself.
    for key in [b'r', b'q'] {
        let (name, address) = scene.receives("create");
        let mut migration = Migration::start(&scene.pair.source, "guest", &address, SLOW);
        migration.wait_progress();
        scene.pair.source.press("guest", key);
        let text = migration.finish().ended(1, "failed");
        assert!(text.contains("the guest ended"), "{text}");
        scene.pair.destination.waits_no_more(&name);
        assert!(!scene.there.exists(), "what was made is left");
        scene.pair.source.is_clean();
        let checks = "block=check,size=4M block_rate=400";
        let again = Guest::dirtying().disk_with(&scene.disk, "id=data", checks);
        scene.console = scene.pair.source.run("guest", &again);
        scene.console.verifies_blocks();
    }
    scene.moves();
}
