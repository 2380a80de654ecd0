//! Raw images: what is refused, and what is read back.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use block::{
    Access, BlockDevice, Buffer, Content, Discarded, Durability, Error, Extent, ExtentKind,
    RawImage, ZeroMode, samples,
};
use proptest::prelude::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn image(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn open(path: &Path) -> RawImage {
    RawImage::open(path, Access::ReadWrite, Content::Guess).unwrap()
}

fn refuse(path: &Path, access: Access) -> Error {
    RawImage::open(path, access, Content::Guess).unwrap_err()
}

fn write(disk: &dyn BlockDevice, bytes: &[u8], offset: u64) -> block::Result<()> {
    let mut bytes = bytes.to_vec();
    disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed)
}

fn read(disk: &dyn BlockDevice, len: usize, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    disk.read(&[Buffer::new(&mut bytes)], offset).unwrap();
    bytes
}

#[test]
fn what_is_no_image_is_refused_by_its_cause() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(
        refuse(&missing, Access::ReadWrite),
        Error::Missing { .. }
    ));
    for access in [Access::ReadOnly, Access::ReadWrite] {
        assert!(
            matches!(refuse(dir.path(), access), Error::Directory { .. }),
            "{access:?}"
        );
    }
    assert!(matches!(
        refuse(&image(&dir, 0), Access::ReadWrite),
        Error::Empty { .. }
    ));
    let error = refuse(&image(&dir, 1000), Access::ReadWrite);
    assert!(
        matches!(error, Error::Unaligned { size: 1000, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("disk.raw"));
    let zero = refuse(Path::new("/dev/zero"), Access::ReadWrite);
    assert!(
        matches!(
            zero,
            Error::NotAnImage {
                kind: "character device",
                ..
            }
        ),
        "{zero}"
    );
}

#[test]
fn a_container_is_not_taken_for_a_raw_image_unless_it_is_said_to_be_one() {
    let dir = TempDir::new().unwrap();
    for (signature, format) in [
        (&b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (b"KDMV\x01\0\0\0", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
    ] {
        let path = image(&dir, MIB);
        let raw = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
        write(&raw, signature, 0).unwrap();
        match refuse(&path, Access::ReadWrite) {
            Error::ForeignFormat { format: found, .. } => assert_eq!(found, format),
            error => panic!("{error}"),
        }
        assert!(RawImage::open(&path, Access::ReadWrite, Content::Raw).is_ok());
    }
}

#[test]
fn missing_rights_are_named() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, MIB);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    // On a thread of its own, whose rights nobody else shares.
    std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        let error = refuse(&path, Access::ReadWrite);
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        assert!(RawImage::open(&path, Access::ReadOnly, Content::Guess).is_ok());
    })
    .join()
    .unwrap();
}

#[test]
fn requests_outside_the_image_are_refused() {
    let dir = TempDir::new().unwrap();
    let disk = open(&image(&dir, MIB));
    assert_eq!(disk.size(), MIB);
    for (offset, len) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 1)] {
        let mut bytes = vec![0; len];
        let buffers = [Buffer::new(&mut bytes)];
        let out = |result: block::Result<()>| {
            assert!(
                matches!(result, Err(Error::OutOfRange { .. })),
                "{offset}+{len}"
            );
        };
        out(disk.read(&buffers, offset));
        out(disk.write(&buffers, offset, Durability::Flushed));
        out(disk.discard(offset, len as u64).map(drop));
        out(disk.write_zeroes(offset, len as u64, ZeroMode::MayUnmap));
        out(disk.extents(offset, len as u64, 1).map(drop));
    }
    assert!(disk.read(&[], MIB).is_ok());
}

#[test]
fn a_read_only_image_takes_no_change() {
    let dir = TempDir::new().unwrap();
    let disk = RawImage::open(image(&dir, MIB), Access::ReadOnly, Content::Guess).unwrap();
    assert!(disk.read_only());
    let refused = |result| assert!(matches!(result, Err(Error::ReadOnly { .. })));
    refused(write(&disk, &[1], 0));
    refused(disk.discard(0, 512).map(drop));
    refused(disk.write_zeroes(0, 512, ZeroMode::KeepAllocated));
    assert!(disk.flush().is_ok());
}

#[test]
fn there_is_something_to_flush_after_a_change_until_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&image(&dir, 4 << 20));
    assert!(!disk.has_unflushed_writes());
    type Change = fn(&RawImage) -> block::Result<()>;
    let changes: [Change; 3] = [
        |disk| write(disk, &[1; 512], 0),
        |disk| disk.write_zeroes(0, 4096, ZeroMode::KeepAllocated),
        |disk| disk.discard(0, 4096).map(drop),
    ];
    for change in changes {
        change(&disk).unwrap();
        assert!(disk.has_unflushed_writes());
        read(&disk, 512, 0);
        disk.flush().unwrap();
        assert!(!disk.has_unflushed_writes());
    }
}

#[test]
fn an_image_truncated_while_in_use_is_short() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, MIB);
    let disk = open(&path);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let mut bytes = [0; 4096];
    let error = disk.read(&[Buffer::new(&mut bytes)], 2048).unwrap_err();
    assert!(
        matches!(error, Error::Short { offset: 4096, .. }),
        "{error}"
    );
}

#[test]
fn more_buffers_than_the_kernel_takes_at_once_are_moved_whole() {
    let dir = TempDir::new().unwrap();
    let disk = open(&image(&dir, MIB));
    let mut bytes: Vec<u8> = (0..6000u32).map(|i| (i % 251) as u8).collect();
    let expected = bytes.clone();
    let buffers: Vec<_> = bytes.chunks_mut(3).map(Buffer::new).collect();
    disk.write(&buffers, 77, Durability::Immediate).unwrap();
    assert_eq!(read(&disk, 6000, 77), expected);
    let mut back = vec![0; 6000];
    let buffers: Vec<_> = back.chunks_mut(5).map(Buffer::new).collect();
    disk.read(&buffers, 77).unwrap();
    assert_eq!(back, expected);
}

#[test]
fn extents_tell_data_from_holes() {
    let dir = TempDir::new().unwrap();
    let disk = open(&image(&dir, 4 * MIB));
    write(&disk, &vec![1; MIB as usize], MIB).unwrap();
    let extents = disk.extents(0, 4 * MIB, 100).unwrap();
    let data: Vec<_> = extents
        .iter()
        .filter(|e| e.kind == ExtentKind::Data)
        .collect();
    assert!(
        data.iter()
            .any(|e| e.offset <= MIB && e.offset + e.len >= 2 * MIB),
        "{extents:?}"
    );
    assert_cover(&extents, 0, 4 * MIB);
    let one = disk.extents(512, 4 * MIB - 512, 1).unwrap();
    assert_eq!((one.len(), one[0].offset), (1, 512));
    assert_eq!(disk.extents(MIB, 0, 10).unwrap(), []);
}

fn assert_cover(extents: &[Extent], from: u64, to: u64) {
    let mut at = from;
    for extent in extents {
        assert_eq!(extent.offset, at);
        assert_ne!(extent.len, 0);
        at += extent.len;
    }
    assert_eq!(at, to);
}

#[test]
fn identity_is_that_of_the_file_and_not_of_its_name() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, MIB);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let (a, b) = (open(&path).identity(), open(&link).identity());
    assert_eq!((a.device, a.inode), (b.device, b.inode));
    assert_ne!(a.name, b.name);
}

#[test]
fn an_image_beside_its_owner_is_read_past_the_page_cache_until_its_use_begins() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, MIB);
    // What the descriptors of it say of themselves. One of them, for copies, always reads past the page cache; which has the
    // lower number is up to the tests that run beside this one.
    let cached = |disk: &RawImage| {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let of_disk = fds
            .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == disk.path()))
            .map(|fd| fd.file_name());
        let is_cached = |fd: &std::ffi::OsString| {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.display())).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            flags & libc::O_DIRECT == 0
        };
        of_disk.filter(is_cached).count()
    };
    let disk = RawImage::open_beside_owner(&path, Access::ReadWrite).unwrap();
    if cached(&disk) > 0 {
        println!("skipped: this file system has no direct reads");
        return;
    }
    samples::hash(&disk, &[7; 32], 0).unwrap();
    disk.forget_cached().unwrap();
    disk.begin_use().unwrap();
    assert_eq!(cached(&disk), 1);
    let mut byte = [1];
    disk.read(&[Buffer::new(&mut byte)], 511).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn samples_tell_what_was_written_from_what_was_not() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, MIB + 512);
    let copy = dir.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let disk = open(&path);
    assert!(disk.last_writes().is_empty());
    disk.write(
        &[Buffer::new(&mut [1; 512])],
        5 * 4096 + 512,
        Durability::Flushed,
    )
    .unwrap();
    disk.write_zeroes(9 * 4096, 4096, ZeroMode::MayUnmap)
        .unwrap();
    // The rest behind the last whole block is left out.
    disk.write(&[Buffer::new(&mut [1; 512])], MIB, Durability::Flushed)
        .unwrap();
    assert_eq!(disk.last_writes(), [5 * 4096, 9 * 4096]);
    let (copy, key) = (open(&copy), [7; 32]);
    let hash = |disk: &RawImage, key, block: u64| samples::hash(disk, key, block * 4096).unwrap();
    assert_ne!(hash(&disk, &key, 5), hash(&copy, &key, 5));
    assert_eq!(hash(&disk, &key, 9), hash(&copy, &key, 9));
    assert_ne!(hash(&disk, &key, 9), hash(&disk, &[8; 32], 9));
    assert!(samples::hash(&disk, &key, 1 << 40).is_err());
}

#[derive(Debug, Clone)]
enum Change {
    Write {
        offset: u64,
        len: u64,
        seed: u8,
        cut: usize,
    },
    Zero {
        offset: u64,
        len: u64,
        mode: ZeroMode,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Flush,
}

fn change() -> impl Strategy<Value = Change> {
    let range = (0u64..65_536, 0u64..20_000);
    prop_oneof![
        (range.clone(), any::<u8>(), 1usize..5000).prop_map(|((offset, len), seed, cut)| {
            Change::Write {
                offset,
                len,
                seed,
                cut,
            }
        }),
        (range.clone(), any::<bool>()).prop_map(|((offset, len), unmap)| Change::Zero {
            offset,
            len,
            mode: if unmap {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepAllocated
            },
        }),
        range.prop_map(|(offset, len)| Change::Discard { offset, len }),
        Just(Change::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn image_reads_back_what_a_model_holds(changes in prop::collection::vec(change(), 1..30)) {
        const SIZE: u64 = 65_536;
        let dir = TempDir::new().unwrap();
        let disk = open(&image(&dir, SIZE));
        let mut model = vec![0u8; SIZE as usize];
        for change in changes {
            match change {
                Change::Write { offset, len, seed, cut } => {
                    let mut bytes: Vec<u8> =
                        (0..len).map(|i| seed.wrapping_add(i as u8)).collect();
                    let expected = bytes.clone();
                    let buffers: Vec<_> = bytes.chunks_mut(cut).map(Buffer::new).collect();
                    let fits = offset + len <= SIZE;
                    prop_assert_eq!(disk.write(&buffers, offset, Durability::Flushed).is_ok(), fits);
                    if fits {
                        model[offset as usize..(offset + len) as usize].copy_from_slice(&expected);
                    }
                }
                Change::Zero { offset, len, mode } => {
                    let fits = offset + len <= SIZE;
                    prop_assert_eq!(disk.write_zeroes(offset, len, mode).is_ok(), fits);
                    if fits {
                        model[offset as usize..(offset + len) as usize].fill(0);
                    }
                }
                Change::Discard { offset, len } => {
                    let fits = offset + len <= SIZE;
                    let discarded = disk.discard(offset, len);
                    prop_assert_eq!(discarded.is_ok(), fits);
                    if matches!(discarded, Ok(Discarded::Zero)) {
                        model[offset as usize..(offset + len) as usize].fill(0);
                    }
                }
                Change::Flush => prop_assert!(disk.flush().is_ok()),
            }
            prop_assert!(read(&disk, SIZE as usize, 0) == model);
            assert_cover(&disk.extents(0, SIZE, 1000).unwrap(), 0, SIZE);
        }
    }
}
