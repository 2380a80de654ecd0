//! Block devices: what lies below a loop device, and the exclusive open that one alone has.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use block::{
    Access, BlockDevice, Buffer, Content, Discarded, Durability, Error, ImageKind, RawImage,
    ZeroMode,
};
use tempfile::TempDir;

/// A loop device over a file; it goes when this is dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path, more: &[&str]) -> Option<Self> {
        let set_up = Command::new("losetup")
            .args(["--find", "--show"])
            .args(more)
            .arg(file)
            .output();
        match set_up {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Self(path.trim_end().into()))
            }
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
                println!("skipped: no loop device: {why}");
                None
            }
            Err(error) => {
                println!("skipped: losetup: {error}");
                None
            }
        }
    }

    fn open(&self) -> RawImage {
        RawImage::open(&self.0, Access::ReadWrite, Content::Raw).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let gone = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
        assert!(
            gone.is_ok_and(|status| status.success()),
            "{}",
            self.0.display()
        );
    }
}

fn image(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

fn open(path: &Path) -> RawImage {
    RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap()
}

#[test]
fn a_file_is_in_use_through_every_loop_device_over_it() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let Some(one) = Loop::over(&path, &[]) else {
        return;
    };
    let Some(other) = Loop::over(&path, &[]) else {
        return;
    };
    let (first, second, file) = (one.open(), other.open(), open(&path));
    assert_eq!(first.kind(), ImageKind::BlockDevice);
    let identities = [&first, &second, &file].map(BlockDevice::identity);
    for identity in &identities {
        assert!(identity.is_same_as(&identities[0]), "{identity:?}");
    }
    let claim = first.claim().unwrap();
    for also in [&second, &file] {
        assert!(also.has_owner().unwrap());
        let refused = also.claim().unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("disk.raw"), "{refused}");
    }
    // It changes hands from one way to another.
    claim.offer_successor().unwrap();
    let successor = second.claim_as_successor().unwrap();
    drop(claim);
    assert!(successor.complete().unwrap());
    assert!(file.claim().is_err());
    drop(successor);
    let claim = file.claim().unwrap();
    assert!(first.claim().is_err());
    drop(claim);
    assert!(first.claim().is_ok());
}

#[test]
fn a_part_of_a_file_and_a_file_that_is_gone_are_not_below() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let Some(part) = Loop::over(&path, &["--offset", "4096"]) else {
        return;
    };
    let Some(whole) = Loop::over(&path, &[]) else {
        return;
    };
    assert_eq!(part.open().identity().below, None);
    assert!(whole.open().identity().below.is_some());
    fs::remove_file(&path).unwrap();
    assert_eq!(whole.open().identity().below, None);
    // Another file by the same name is not the one.
    let _another = image(&dir);
    assert_eq!(whole.open().identity().below, None);
}

#[test]
fn a_held_device_is_nobody_elses_by_any_node_until_the_last_copy_goes() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let Some(device) = Loop::over(&path, &[]) else {
        return;
    };
    // A second node: its locks are others.
    let number = fs::metadata(&device.0).unwrap().rdev();
    let node = dir.path().join("node");
    let made = Command::new("mknod")
        .arg(&node)
        .arg("b")
        .args([
            rustix::fs::major(number).to_string(),
            rustix::fs::minor(number).to_string(),
        ])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: no node of a device can be made");
        return;
    }
    let (image, second) = (device.open(), open(&node));
    let exclusive = image.open_exclusively().unwrap().unwrap();
    let copy = exclusive.try_clone().unwrap();
    let refused = || {
        let refused = second.open_exclusively().unwrap_err();
        assert!(
            matches!(refused, Error::OpenedExclusively { .. }),
            "{refused}"
        );
    };
    refused();
    drop(exclusive);
    refused();
    assert_eq!(copy.device(), number);
    drop(copy);
    drop(second.open_exclusively().unwrap().unwrap());
    // Who only reads opens nothing so, and a file has nobody to keep out.
    let reader = RawImage::open(&device.0, Access::ReadOnly, Content::Raw).unwrap();
    assert!(reader.open_exclusively().unwrap().is_none());
    assert!(open(&path).open_exclusively().unwrap().is_none());
}

#[test]
fn a_mounted_device_cannot_be_opened_exclusively() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Loop::over(&path, &[]) else {
        return;
    };
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&device.0).status();
    let mounted = Command::new("mount").arg(&device.0).arg(&at).status();
    if !(made.is_ok_and(|s| s.success()) && mounted.is_ok_and(|s| s.success())) {
        println!("skipped: no file system can be mounted");
        return;
    }
    let opened = device.open().open_exclusively();
    let gone = Command::new("umount").arg(&at).status();
    assert!(gone.is_ok_and(|status| status.success()));
    let refused = opened.unwrap_err();
    assert!(
        matches!(refused, Error::OpenedExclusively { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("mounted"), "{refused}");
}

#[test]
fn a_held_device_reads_zeroes_wherever_they_were_written_over_what_is_not_stored_yet() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let Some(device) = Loop::over(&path, &[]) else {
        return;
    };
    let image = device.open();
    let _held = image.open_exclusively().unwrap().unwrap();
    let mut bytes = vec![7; 64 << 10];
    let whole = 0..bytes.len() as u64;
    for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
        bytes.fill(7);
        let buffers = [Buffer::new(&mut bytes)];
        image.write(&buffers, 0, Durability::Flushed).unwrap();
        image.write_zeroes(512, whole.end - 1024, mode).unwrap();
        image.read(&buffers, 0).unwrap();
        assert_eq!(bytes[..512], [7; 512]);
        assert!(
            bytes[512..whole.end as usize - 512]
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(bytes[whole.end as usize - 512..], [7; 512]);
    }
    bytes.fill(8);
    let buffers = [Buffer::new(&mut bytes)];
    image.write(&buffers, 0, Durability::Flushed).unwrap();
    let expected = match image.discard(0, whole.end).unwrap() {
        Discarded::Zero => 0,
        Discarded::Kept => 8,
    };
    image.read(&buffers, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == expected));
}
