//! Guests whose disks travel with them, between hosts that share no storage.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::blackbox::storage::qemu_program;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, eventually, guest_lock};
use tests::{Host, skip};

const LISTEN: &str = "127.0.0.1:0";
const OPTIONS: &str = "id=data";
const SIZE: u64 = 64 << 20;
const VERIFY: &str = "block=verify,size=8M block_rate=400";
const SHARED: &[&str] = &["--disks", "shared"];
const PRECOPY: &[&str] = &["--disks", "precopy"];
/// So that there is time to do something while it copies.
const SLOW: &[&str] = &[
    "--disks",
    "data=precopy",
    "--downtime-limit",
    "1us",
    "--bandwidth",
    "20MiB/s",
    // What is killed does not come again.
    "--reconnect-for",
    "0s",
];

/// An image with some content behind what the guest uses.
fn image(host: &Host) -> PathBuf {
    let path = host.path().join("data.raw");
    let file = File::create(&path).expect("image");
    file.set_len(SIZE).expect("size");
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[0xc7; 12 << 20], 48 << 20)
        .expect("content");
    path
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("image").blocks() * 512
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Waits there for a guest whose disk is going to be put at `path`.
#[track_caller]
fn receives(host: &Host, vm: &str, path: &Path, how: &str) -> String {
    let disk = format!("data={},{how}", text(path));
    host.receive_with(vm, LISTEN, &["--disk", &disk])
}

#[track_caller]
fn goes_on(console: &mut Console, host: &Host, vm: &str) {
    console.moves_to(host, vm);
    console.verifies_blocks();
    console.verifies_ledger();
}

/// Of the disk, which went over what it was before, only what the guest has written since was sent.
#[track_caller]
fn brings_only_news(report: &Value) {
    assert_eq!(report["verified"], true, "{report:#}");
    let bytes = |name: &str| report["disks"][name].as_u64().expect("bytes");
    assert!(bytes("present_bytes") >= 12 << 20, "{report:#}");
    // It has 8 MiB of its own, and may write all of them again meanwhile.
    assert!(bytes("bytes") <= 10 << 20, "{report:#}");
}

/// What an image holds behind what the guest uses.
fn content(image: &Path) -> Vec<u8> {
    let bytes = fs::read(image).expect("image");
    bytes[16 << 20..].to_vec()
}

#[test]
fn a_guest_moves_there_and_back_with_its_disk() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let first = image(&pair.source);
    let guest = Guest::dirtying().disk_with(&first, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    console.verifies_blocks();

    let there = pair.destination.path().join("there.raw");
    let address = receives(&pair.destination, "there", &there, "create");
    let report = Migration::start(&pair.source, "guest", &address, PRECOPY)
        .finish()
        .completed();
    assert_eq!(report["verified"], true, "{report}");
    goes_on(&mut console, &pair.destination, "there");
    // Holes stay holes, and the old image is left as it was.
    assert!(allocated(&there) <= allocated(&first) + (1 << 20));
    assert_eq!(content(&first), content(&there));

    // Back to where it was before, which may be written over: what is there still is not sent.
    let address = receives(&pair.source, "back", &first, "existing");
    let report = Migration::start(&pair.destination, "there", &address, PRECOPY)
        .finish()
        .completed();
    brings_only_news(&report);
    goes_on(&mut console, &pair.source, "back");
    assert_eq!(content(&first), content(&there));
    pair.source.stop("back");
    pair.is_clean();
}

#[test]
fn a_disk_becomes_another_format_on_its_way() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let raw = image(&pair.source);
    let guest = Guest::dirtying().disk_with(&raw, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    let qcow2 = pair.destination.path().join("there.qcow2");
    let address = receives(&pair.destination, "there", &qcow2, "create,format=qcow2");
    let _ = Migration::start(&pair.source, "guest", &address, PRECOPY)
        .finish()
        .completed();
    goes_on(&mut console, &pair.destination, "there");
    // And from qcow2 to raw, under a name that this host chooses.
    let folder = pair.source.path().join("disks");
    fs::create_dir(&folder).expect("folder");
    let address = pair
        .source
        .receive_with("back", LISTEN, &["--disk-dir", &text(&folder)]);
    let _ = Migration::start(&pair.destination, "there", &address, PRECOPY)
        .finish()
        .completed();
    goes_on(&mut console, &pair.source, "back");
    let address = receives(&pair.destination, "again", &qcow2, "existing,format=qcow2");
    let report = Migration::start(&pair.source, "back", &address, PRECOPY)
        .finish()
        .completed();
    brings_only_news(&report);
    goes_on(&mut console, &pair.destination, "again");
    pair.destination.stop("again");
    let back = folder.join("back-data.raw");
    assert_eq!(content(&back), content(&raw));
    match qemu_program("qemu-img") {
        Some(mut qemu_img) => {
            let check = qemu_img.args(["check", "-q", "-f", "qcow2"]).arg(&qcow2);
            let output = check.output().expect("qemu-img");
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{why}");
        }
        None => println!("{}", skip::line(format_args!("there is no qemu-img"))),
    }
    pair.is_clean();
}

#[test]
fn whatever_ends_it_before_the_commit_leaves_the_guest_with_its_disk_and_nothing_else() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair.source);
    let guest = Guest::dirtying().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    let there = pair.destination.path().join("there.raw");
    // Its user, and the destination with what it has made.
    for cause in ["cancel", "kill"] {
        let address = receives(&pair.destination, "there", &there, "create");
        let mut migration = Migration::start(&pair.source, "guest", &address, SLOW);
        migration.wait_progress();
        assert!(there.exists(), "nothing is made");
        match cause {
            "cancel" => {
                migration.interrupt();
                let _ = migration.finish().ended(4, "cancelled");
                pair.destination.waits_no_more("there");
                assert!(!there.exists(), "what was made is left");
            }
            _ => {
                pair.destination.crash("there");
                let _ = migration.finish().ended(1, "failed");
            }
        }
        console.verifies_blocks();
        console.verifies_ledger();
    }
    // What was killed could not clean up; whoever comes next does, and the same works at once.
    assert!(there.exists());
    let address = receives(&pair.destination, "again", &there, "create");
    let _ = Migration::start(&pair.source, "guest", &address, PRECOPY)
        .finish()
        .completed();
    goes_on(&mut console, &pair.destination, "again");
    pair.destination.stop("again");
    pair.source.is_clean();
    pair.destination.is_swept();
}

#[test]
fn a_source_that_is_killed_takes_what_was_made_for_its_guest_along() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair.source);
    let guest = Guest::dirtying().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    console.verifies_blocks();
    let there = pair.destination.path().join("there.raw");
    let address = receives(&pair.destination, "there", &there, "create");
    let mut migration = Migration::start(&pair.source, "guest", &address, SLOW);
    migration.wait_progress();
    pair.source.crash("guest");
    let _ = migration.finish();
    pair.destination.waits_no_more("there");
    assert!(!there.exists(), "what was made is left");
    // The guest was not given away: its disk is current, and is used again without a question.
    let again = Guest::idle().disk_with(&disk, OPTIONS, "block=check,size=8M block_rate=400");
    let mut console = pair.source.run("again", &again);
    console.verifies_blocks();
    pair.source.stop("again");
    pair.source.is_swept();
    pair.destination.is_clean();
}

#[test]
fn an_image_whose_guest_has_gone_is_not_used_by_mistake() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair.source);
    let guest = Guest::idle().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    let there = pair.destination.path().join("there.raw");
    let address = receives(&pair.destination, "there", &there, "create");
    let _ = Migration::start(&pair.source, "guest", &address, PRECOPY)
        .finish()
        .completed();
    goes_on(&mut console, &pair.destination, "there");
    let path = text(&disk);
    let run = ["run", "stale", "--detach", "--disk", &path];
    let said = pair.source.vmm(run).expect_code(1).stderr;
    assert!(
        said.contains("the guest went to") && said.contains("--use-stale"),
        "{said}"
    );
    // Nor after it was renamed.
    let renamed = pair.source.path().join("renamed.raw");
    fs::rename(&disk, &renamed).expect("rename");
    let path = text(&renamed);
    let run = ["run", "stale", "--detach", "--disk", &path];
    let _ = pair.source.vmm(run).expect_code(1);
    let run = ["run", "stale", "--detach", "--use-stale", "--disk", &path];
    let _ = pair.source.vmm(run).success();
    pair.source.stop("stale");
    // From then on it is that guest's.
    let run = ["run", "stale", "--detach", "--disk", &path];
    let _ = pair.source.vmm(run).success();
    pair.source.stop("stale");
    pair.destination.stop("there");
    pair.is_clean();
}

/// Where nothing is said at the source, a disk travels if the destination does not reach it, or was told to put it somewhere.
#[test]
fn a_disk_that_the_destination_reaches_stays_where_it_is_and_another_travels() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair.source);
    let guest = Guest::idle().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    let folder = pair.destination.path().join("disks");
    fs::create_dir(&folder).expect("folder");
    let disk_dir = ["--disk-dir", &text(&folder)];

    let address = pair.destination.receive_with("there", LISTEN, &disk_dir);
    let report = Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    assert!(report["disks"].is_null(), "{report}");
    goes_on(&mut console, &pair.destination, "there");
    assert_eq!(fs::read_dir(&folder).expect("folder").count(), 0);

    // Its name leads nowhere any more.
    fs::rename(&disk, disk.with_extension("moved")).expect("rename");
    let address = pair.source.receive_with("back", LISTEN, &disk_dir);
    let report = Migration::start(&pair.destination, "there", &address, &[])
        .finish()
        .completed();
    let travelling = &report["disks"]["travelling"][0];
    assert_eq!(travelling["id"], "data", "{report}");
    let why = travelling["why"].as_str().expect("why");
    assert!(why.contains("does not reach it"), "{why}");
    goes_on(&mut console, &pair.source, "back");

    let placed = pair.destination.path().join("placed.raw");
    let address = receives(&pair.destination, "placed", &placed, "create");
    let report = Migration::start(&pair.source, "back", &address, &[])
        .finish()
        .completed();
    let why = report["disks"]["travelling"][0]["why"]
        .as_str()
        .expect("why");
    assert!(why.contains("was told to put it at"), "{why}");
    goes_on(&mut console, &pair.destination, "placed");
    pair.destination.stop("placed");
    pair.is_clean();
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_made() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = image(&pair.source);
    let guest = Guest::idle().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    let folder = pair.destination.path();
    let small = folder.join("small.raw");
    File::create(&small)
        .and_then(|f| f.set_len(SIZE - 512))
        .expect("image");
    let (small, other) = (text(&small), text(&folder.join("other.raw")));
    let cases: [(&[&str], &[&str], &str); 7] = [
        (&[], PRECOPY, "has no place for it"),
        (
            &["--disk", &format!("data={small},create")],
            PRECOPY,
            "something is there already",
        ),
        (
            &["--disk", &format!("data={small},existing")],
            PRECOPY,
            "67108352",
        ),
        (
            &["--disk", &format!("data={other},existing")],
            PRECOPY,
            "cannot look at",
        ),
        (&["--disk", &format!("data={other}")], PRECOPY, "create"),
        (
            &["--disk", &format!("data={other},create")],
            SHARED,
            "does not travel",
        ),
        (
            &["--disk", "data=/nowhere/at/all.raw,create"],
            PRECOPY,
            "/nowhere/at",
        ),
    ];
    for (number, (there, here, why)) in cases.into_iter().enumerate() {
        let name = format!("there-{number}");
        let address = pair.destination.receive_with(&name, LISTEN, there);
        let said = Migration::start(&pair.source, "guest", &address, here)
            .finish()
            .ended(1, "failed");
        assert!(said.contains(why), "{there:?}: {said}");
        pair.destination.waits_no_more(&name);
    }
    assert!(!Path::new(&other).exists());
    for wrong in ["other=precopy", "data=snapshot,overlay=destination", "copy"] {
        let args = ["migrate", "guest", "--to", "127.0.0.1:1", "--disks", wrong];
        let _ = pair.source.vmm(args).expect_code(2);
    }
    eventually("the guest goes on", || {
        console.wait_tick();
        Some(())
    });
    console.verifies_blocks();
    pair.source.stop("guest");
    pair.is_clean();
}
