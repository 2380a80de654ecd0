//! Raw images past the page cache without a ring, on storage of any block size.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use block::image::uncached::Uncached;
use block::{Access, BlockDevice, Buffer, Content, Durability, Error, RawImage, ZeroMode};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

/// A loop device that takes blocks of so many bytes; it goes when this is dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path, block: &str) -> Option<Self> {
        let set_up = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", block])
            .arg(file)
            .output();
        match set_up {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Self(path.trim_end().into()))
            }
            Ok(_) | Err(_) => {
                println!("skipped: no loop device of blocks of {block}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

fn file(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn uncached(path: &Path) -> block::Result<Uncached> {
    let image = Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw)?);
    image.open_direct()?;
    Uncached::new(image)
}

fn write(disk: &Uncached, bytes: &[u8], offset: u64) {
    let mut bytes = bytes.to_vec();
    let buffers = [Buffer::new(&mut bytes)];
    disk.write(&buffers, offset, Durability::Flushed).unwrap();
}

fn read(disk: &Uncached, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    let (one, two) = bytes.split_at_mut(len / 3);
    let buffers = [Buffer::new(one), Buffer::new(two)];
    disk.read(&buffers, offset).unwrap();
    bytes
}

/// What is written in any place and length is read again, and all beside it is as before.
fn holds_what_is_written(disk: &Uncached) {
    let mut expected = vec![0_u8; SIZE as usize];
    for (number, (sector, sectors)) in [
        (0, 1),
        (7, 1),
        (8, 8),
        (13, 20),
        (64, 256),
        (2047, 1),
        (3, 600),
    ]
    .into_iter()
    .enumerate()
    {
        let (at, len) = (sector * 512, sectors * 512);
        let bytes = vec![number as u8 + 1; len];
        write(disk, &bytes, at as u64);
        expected[at..at + len].copy_from_slice(&bytes);
        assert_eq!(read(disk, at as u64, len), bytes);
    }
    for (sector, sectors) in [(9, 3), (128, 100), (501, 11)] {
        let (at, len) = (sector * 512, sectors * 512);
        for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
            disk.write_zeroes(at as u64, len as u64, mode).unwrap();
        }
        expected[at..at + len].fill(0);
    }
    assert!(disk.has_unflushed_writes());
    disk.flush().unwrap();
    assert!(!disk.has_unflushed_writes());
    assert!(read(disk, 0, SIZE as usize) == expected);
    let beyond = disk.read(&[Buffer::new(&mut [0; 512])], SIZE);
    assert!(
        matches!(beyond, Err(Error::OutOfRange { .. })),
        "{beyond:?}"
    );
}

/// Changes of parts of one block at the same time lose nothing.
fn loses_no_part_of_a_block(disk: &Uncached) {
    thread::scope(|scope| {
        for sector in 0..8_u64 {
            scope.spawn(move || {
                for round in 0..50_u8 {
                    write(disk, &[round.max(1); 512], sector * 512);
                    assert_eq!(read(disk, sector * 512, 512), [round.max(1); 512]);
                }
            });
        }
    });
}

#[test]
fn a_file_holds_what_is_written_and_nothing_of_it_is_left_to_the_page_cache() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, SIZE);
    let disk = match uncached(&path) {
        Ok(disk) => disk,
        Err(error) => return println!("skipped: {error}"),
    };
    holds_what_is_written(&disk);
    loses_no_part_of_a_block(&disk);
    assert_eq!(fs::read(&path).unwrap(), read(&disk, 0, SIZE as usize));
}

#[test]
fn a_device_of_larger_blocks_holds_what_is_written_in_sectors() {
    let dir = TempDir::new().unwrap();
    let Some(device) = Loop::over(&file(&dir, SIZE), "4096") else {
        return;
    };
    let disk = uncached(&device.0).unwrap();
    holds_what_is_written(&disk);
    loses_no_part_of_a_block(&disk);
}

#[test]
fn what_was_not_opened_so_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let image = RawImage::open(file(&dir, SIZE), Access::ReadWrite, Content::Raw).unwrap();
    let refused = Uncached::new(Arc::new(image)).unwrap_err();
    assert!(matches!(refused, Error::NotDirect { .. }), "{refused}");
}
