//! QEMU and its tools know an image that is in use by its lock bytes, and are known by theirs.

// fcntl has no safe wrapper for open-file-description locks.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use block::{Access, Content, Error, RawImage};
use tempfile::TempDir;

/// Permissions as QEMU counts them (`BLK_PERM_*`).
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

struct Disk {
    _dir: TempDir,
    path: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Self { _dir: dir, path }
    }

    fn open(&self, access: Access) -> RawImage {
        RawImage::open(&self.path, access, Content::Raw).unwrap()
    }

    /// Comes in as QEMU does: locks, then looks; its descriptor if nothing contradicts.
    fn qemu(&self, has: &[i64], does_not_share: &[i64]) -> Option<File> {
        let options = File::options().read(true).write(true).open(&self.path);
        let file = options.unwrap();
        for byte in has {
            assert!(lock(&file, libc::F_OFD_SETLK, 100 + byte, libc::F_RDLCK).is_some());
        }
        for byte in does_not_share {
            assert!(lock(&file, libc::F_OFD_SETLK, 200 + byte, libc::F_RDLCK).is_some());
        }
        let contradicting = does_not_share.iter().map(|byte| 100 + byte);
        let mut contradicting = contradicting.chain(has.iter().map(|byte| 200 + byte));
        let contradicted = contradicting.any(|byte| {
            let found = lock(&file, libc::F_OFD_GETLK, byte, libc::F_WRLCK).unwrap();
            found.l_type != libc::F_UNLCK as libc::c_short
        });
        (!contradicted).then_some(file)
    }

    /// As a guest's disk, as `qemu-img info`, and as an export for reading only.
    fn qemu_gets_in(&self) -> [bool; 3] {
        // One after the other: each lets go before the next comes.
        let uses: [(&[i64], &[i64]); 3] = [
            (&[READ, WRITE], &[WRITE]),
            (&[READ], &[WRITE, RESIZE]),
            (&[READ], &[RESIZE]),
        ];
        uses.map(|(has, does_not_share)| self.qemu(has, does_not_share).is_some())
    }
}

fn lock(file: &File, command: i32, byte: i64, kind: i32) -> Option<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the struct lives for the duration of the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (done == 0).then_some(lock)
}

#[test]
fn qemu_keeps_away_from_an_image_at_every_step_of_its_way() {
    let disk = Disk::new();
    assert_eq!(disk.qemu_gets_in(), [true; 3]);
    let source_image = disk.open(Access::ReadWrite);
    let source = source_image.claim().unwrap();
    assert_eq!(disk.qemu_gets_in(), [false; 3]);
    for failed in [true, false] {
        source.offer_successor().unwrap();
        assert_eq!(disk.qemu_gets_in(), [false; 3]);
        let image = disk.open(Access::ReadWrite);
        let destination = image.claim_as_successor().unwrap();
        assert_eq!(disk.qemu_gets_in(), [false; 3]);
        if failed {
            drop(destination);
            assert_eq!(disk.qemu_gets_in(), [false; 3]);
            source.reclaim().unwrap();
        } else {
            source.release().unwrap();
            assert_eq!(disk.qemu_gets_in(), [false; 3]);
            assert!(destination.complete().unwrap());
            assert_eq!(disk.qemu_gets_in(), [false; 3]);
            drop(destination);
        }
    }
    assert_eq!(disk.qemu_gets_in(), [true; 3]);
}

#[test]
fn readers_of_both_kinds_share_and_keep_writers_of_both_kinds_out() {
    let disk = Disk::new();
    let image = disk.open(Access::ReadOnly);
    let claim = image.claim().unwrap();
    assert_eq!(disk.qemu_gets_in(), [false, true, true]);
    let _reader = disk.qemu(&[READ], &[WRITE, RESIZE]).unwrap();
    let another = disk.open(Access::ReadOnly);
    drop((another.claim().unwrap(), claim));
    let refused = disk.open(Access::ReadWrite).claim().unwrap_err();
    assert!(matches!(refused, Error::InUseByQemu { .. }), "{refused}");
}

#[test]
fn an_image_that_qemu_uses_is_refused_and_left_alone() {
    let disk = Disk::new();
    let uses: [(&[i64], &[i64]); 2] = [(&[READ, WRITE], &[WRITE]), (&[READ, WRITE], &[RESIZE])];
    for (has, does_not_share) in uses {
        let qemu = disk.qemu(has, does_not_share).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let refused = disk.open(access).claim().unwrap_err();
            assert!(matches!(refused, Error::InUseByQemu { .. }), "{refused}");
            let message = refused.to_string();
            assert!(
                message.contains("disk.raw") && message.contains("QEMU"),
                "{message}"
            );
        }
        drop(qemu);
        // Nothing of the attempts is left.
        assert_eq!(disk.qemu_gets_in(), [true; 3]);
        assert!(disk.open(Access::ReadWrite).claim().is_ok());
    }
}
