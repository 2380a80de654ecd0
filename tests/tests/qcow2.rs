//! Guests whose disks lie in qcow2 images.

use std::fs;
use std::path::{Path, PathBuf};

use tests::blackbox::storage::qemu_program;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, eventually, guest_lock};
use tests::{Host, skip};

const LISTEN: &str = "127.0.0.1:0";
const OPTIONS: &str = "format=qcow2,id=data";
const VERIFY: &str = "block=verify,size=4M block_rate=400";

/// An image over another, which has some content, of which the guest knows nothing; small clusters, so that much is
/// mapped.
fn overlay(host: &Host) -> PathBuf {
    let folder = host.path();
    let base = folder.join("base.raw");
    let mut content = vec![0; 6 << 20];
    content[5 << 20..].fill(0xb5);
    fs::write(&base, content).expect("base");
    let path = folder.join("data.qcow2");
    let create = host.vmm([
        "disk",
        "create",
        &path.display().to_string(),
        "--size",
        "16MiB",
        "--format",
        "qcow2",
        "--cluster-size",
        "4KiB",
        "--backing",
        "base.raw",
        "--backing-format",
        "raw",
    ]);
    let _ = create.success();
    path
}

/// Neither this program nor QEMU finds anything wrong, nor that it was left open.
#[track_caller]
fn is_whole(host: &Host, image: &Path) {
    let check = host.vmm(["disk", "check", &image.display().to_string(), "--json"]);
    let checked = check.success().json_lines();
    assert_eq!(checked[0]["whole"], true, "{checked:?}");
    assert_eq!(checked[0]["dirty"], false, "{checked:?}");
    judged(image, &["check", "-q", "-f", "qcow2"]);
}

/// What QEMU's tool says; it may be used meanwhile, if the options say so.
#[track_caller]
fn judged(image: &Path, options: &[&str]) {
    let Some(mut qemu_img) = qemu_program("qemu-img") else {
        println!("{}", skip::line(format_args!("there is no qemu-img")));
        return;
    };
    let output = qemu_img
        .args(options)
        .arg(image)
        .output()
        .expect("qemu-img");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {said}{why}");
}

#[track_caller]
fn verifies_blocks(console: &mut Console) {
    let before = console.last("blocks_verified").unwrap_or(0);
    eventually("the guest verifies its blocks", || {
        (console.last("blocks_verified")? > before + 20).then_some(())
    });
    console.verifies_ledger();
}

#[track_caller]
fn moves(from: &Host, vm: &str, to: &Host, name: &str, console: &mut Console) {
    let address = to.receive_with(name, LISTEN, &[]);
    let _ = Migration::start(from, vm, &address, &[])
        .finish()
        .completed();
    console.moves_to(to, name);
    verifies_blocks(console);
}

#[test]
fn a_guest_with_a_qcow2_disk_moves_there_and_back_and_leaves_it_whole() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = overlay(&pair.source);
    let guest = Guest::idle().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    verifies_blocks(&mut console);
    moves(
        &pair.source,
        "guest",
        &pair.destination,
        "there",
        &mut console,
    );
    moves(
        &pair.destination,
        "there",
        &pair.source,
        "back",
        &mut console,
    );
    // What stands still is closed: another may read it now, and finds it whole.
    let _ = pair.source.vmm(["pause", "back"]).success();
    judged(&disk, &["check", "-U", "-q", "-f", "qcow2"]);
    let _ = pair.source.vmm(["resume", "back"]).success();
    verifies_blocks(&mut console);
    pair.source.stop("back");
    is_whole(&pair.source, &disk);
    pair.is_clean();
}

#[test]
fn a_migration_that_fails_late_leaves_the_disk_to_its_source() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let disk = overlay(&pair.source);
    let guest = Guest::dirtying().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = pair.source.run("guest", &guest);
    for _ in 0..3 {
        let address = pair.destination.receive_with("there", LISTEN, &[]);
        let slow = ["--downtime-limit", "1us", "--bandwidth", "20MiB/s"];
        let mut migration = Migration::start(&pair.source, "guest", &address, &slow);
        migration.wait_progress();
        pair.destination.crash("there");
        let _ = migration.finish().ended(1, "failed");
        verifies_blocks(&mut console);
    }
    moves(
        &pair.source,
        "guest",
        &pair.destination,
        "moved",
        &mut console,
    );
    pair.destination.stop("moved");
    is_whole(&pair.source, &disk);
}

#[test]
fn a_disk_whose_vm_was_killed_is_used_again_at_once_with_all_that_was_flushed() {
    let Some(_lock) = guest_lock() else { return };
    let host = Host::new().unwrap_or_else(|e| panic!("{e:#}"));
    let disk = overlay(&host);
    let mut words = VERIFY;
    for _ in 0..4 {
        let guest = Guest::idle().disk_with(&disk, OPTIONS, words);
        let mut console = host.run("guest", &guest);
        verifies_blocks(&mut console);
        host.crash("guest");
        eventually("the killed VM is gone", || {
            host.vmm(["forget", "guest"]).status.success().then_some(())
        });
        // From now on it looks for what it had flushed before.
        words = "block=check,size=4M block_rate=400";
    }
    let guest = Guest::idle().disk_with(&disk, OPTIONS, words);
    let mut console = host.run("guest", &guest);
    verifies_blocks(&mut console);
    console.is_unharmed();
    host.stop("guest");
    is_whole(&host, &disk);
}

#[test]
fn an_image_in_use_is_told_and_neither_resized_nor_checked() {
    let Some(_lock) = guest_lock() else { return };
    let host = Host::new().unwrap_or_else(|e| panic!("{e:#}"));
    let disk = overlay(&host);
    let path = disk.display().to_string();
    let used = || {
        let info = host.vmm(["disk", "info", &path, "--json"]);
        info.success().json_lines()[0]["in_use"].clone()
    };
    assert_eq!(used(), false);
    let guest = Guest::idle().disk_with(&disk, OPTIONS, VERIFY);
    let mut console = host.run("guest", &guest);
    assert_eq!(used(), true);
    for refused in [
        &["disk", "check", &path][..],
        &[
            "disk", "resize", &path, "--size", "32MiB", "--format", "qcow2",
        ],
    ] {
        let said = host.vmm(refused).expect_code(1).stderr;
        assert!(said.contains("in use"), "{said}");
    }
    verifies_blocks(&mut console);
    host.stop("guest");
    // Without its format it is not taken for one.
    let said = host.vmm(["run", "other", "--disk", &path]).expect_code(1);
    assert!(said.stderr.contains("format="), "{}", said.stderr);
}
