//! `vmm disk`, as a user drives it; no VM is there.

#![allow(missing_docs)]

#[path = "support/host.rs"]
mod host;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use host::Host;

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn an_image_is_made_told_of_resized_and_never_overwritten() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (raw, qcow2) = (at("a.raw"), at("b.qcow2"));
    host.ok(&format!("disk create {raw} --size 1MiB"));
    let over = "--backing a.raw --backing-format raw --cluster-size 8KiB";
    let create = format!("disk create {qcow2} --size 4MiB --format qcow2 {over}");
    let made = &host.json(&format!("{create} --json"))[0];
    assert_eq!(
        (&made["format"], &made["virtual_size"]),
        (&"qcow2".into(), &(4 << 20).into())
    );
    host.fails(&create, 1, "disk.exists");
    host.fails(&format!("disk create {raw} --size 1MiB"), 1, "disk.exists");
    host.fails(
        &format!(
            "disk create {} --size 1MiB --backing a --backing-format raw",
            at("c")
        ),
        2,
        "usage.disk",
    );
    host.fails(
        &format!("disk create {} --size 1000", at("c")),
        1,
        "disk.not-resized",
    );
    assert!(!Path::new(&at("c")).exists());

    let info = &host.json(&format!("disk info {qcow2} --json"))[0];
    for (key, value) in [
        ("format", "qcow2".into()),
        ("virtual_size", (4 << 20).into()),
        ("cluster_size", 8192.into()),
        ("version", 3.into()),
        ("in_use", false.into()),
        ("backing_name", "a.raw".into()),
        ("features", serde_json::json!([])),
    ] {
        assert_eq!(info[key], value, "{key}: {info}");
    }
    assert_eq!(info["backing"][0]["format"], "raw");
    assert!(info["allocated"].as_u64().unwrap() < 256 << 10, "{info}");
    assert_eq!(
        host.json(&format!("disk info {raw} --json"))[0]["format"],
        "raw"
    );
    assert!(host.ok(&format!("disk info {qcow2}")).contains("a.raw"));

    // Not taken for what it looks like.
    host.fails(&format!("disk resize {qcow2} --size 8MiB"), 1, "format=");
    host.ok(&format!("disk resize {qcow2} --size 8MiB --format qcow2"));
    host.fails(
        &format!("disk resize {qcow2} --size 4MiB --format qcow2"),
        1,
        "disk.not-resized",
    );
    host.ok(&format!(
        "disk resize {qcow2} --size 4MiB --format qcow2 --shrink"
    ));
    host.ok(&format!("disk resize {raw} --size 2MiB"));
    host.fails(
        &format!("disk resize {raw} --size 1MiB"),
        1,
        "disk.not-resized",
    );
    assert_eq!(fs::metadata(&raw).unwrap().len(), 2 << 20);
    host.fails(&format!("disk info {}", at("none")), 1, "disk.open");
}

#[test]
fn a_check_ends_with_what_it_found_and_a_refusal_with_its_name() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let check = format!("disk check {}", path.display());
    host.ok(&format!(
        "disk create {} --size 4MiB --format qcow2",
        path.display()
    ));
    assert_eq!(host.json(&format!("{check} --json"))[0]["whole"], true);
    // A cluster that nothing leads to is counted.
    put(&path, (2 << 16) + 2 * 200, &[0, 1]);
    let output = host.command(&format!("{check} --json")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["leaks"], &told["errors"]),
        (&1.into(), &0.into()),
        "{told}"
    );
    assert!(
        told["findings"][0]
            .as_str()
            .unwrap()
            .contains("cluster 200"),
        "{told}"
    );
    // One that the header is in is not.
    put(&path, 2 << 16, &[0, 0]);
    host.fails(&check, 1, "");
    put(&path, 79, &[2]);
    let info = &host.json(&format!("disk info {} --json", path.display()))[0];
    assert_eq!(info["features"][0], "corrupt bit");
    assert!(
        info["not_readable"]
            .as_str()
            .unwrap()
            .contains("qemu-img check")
    );
    put(&path, 79, &[4]);
    host.fails(&check, 1, "disk.format");
    put(&path, 0, b"no!!");
    host.fails(&check, 1, "disk.format");
}
