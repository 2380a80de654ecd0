//! qcow2 images: header, tables, what lies below, and requests to a disk of which any of it may be wrong.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::image::Format;
use block::image::qcow2::create::{self, NewImage};
use block::image::qcow2::{BackingRules, Header, Qcow2Image, check};
use block::{Access, BlockDevice, Buffer, Durability, ZeroMode};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::input::counted;
use crate::{Input, Memory, Target};

/// An image, as pieces of a file.
pub(super) const QCOW2: Target = Target {
    name: "qcow2",
    run,
    seeds,
    words: &["QFI\u{fb}", "raw", "qcow2", "base.raw", "json:"],
    longest: 8192,
    memory: Memory {
        base: 96 << 20,
        per_byte: 4096,
    },
};

/// Longest file that is made of an input.
const MAX_FILE: u64 = 1 << 20;

/// The file that an input tells of: pieces, each with its distance from the one before.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let file = File::from(memfd_create("input", MemfdFlags::CLOEXEC).expect("a memory file"));
    let mut input = Input::new(bytes);
    let mut at = 0;
    while !input.is_empty() {
        at += u64::from(input.u16()) * 8;
        let piece = input.counted();
        if at + piece.len() as u64 > MAX_FILE {
            break;
        }
        file.write_all_at(piece, at).expect("room in memory");
        at += piece.len() as u64;
        file.set_len(at.next_multiple_of(512))
            .expect("room in memory");
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

fn run(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    let (_open, path) = file(bytes);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let checked = check::check_file(&path);
        let Ok(image) = Qcow2Image::open(&path, access, &BackingRules::default()) else {
            continue;
        };
        if image.begin_use().is_ok() {
            use_it(&image);
            if access == Access::ReadWrite && checked.is_ok_and(|(r, _)| r.errors == 0) {
                stays_whole(image, &path);
            }
        }
    }
}

/// Requests fail or not; what was written is read.
fn use_it(disk: &dyn BlockDevice) {
    let size = disk.size();
    let mut memory = [0x5a; 1024];
    for at in [0, size / 2 / 512 * 512, size - 512] {
        let sector = &mut memory[..512];
        let _ = disk.read(&[Buffer::new(sector)], at);
        sector.fill(0x5a);
        let written = disk.write(&[Buffer::new(sector)], at, Durability::Flushed);
        if written.is_ok() && disk.read(&[Buffer::new(sector)], at).is_ok() {
            assert_eq!(*sector, [0x5a; 512], "{at}");
        }
    }
    let _ = disk.extents(0, size.min(64 << 20), 16);
    let _ = disk.discard(0, size.min(1 << 20));
    let _ = disk.write_zeroes(size - 512, 512, ZeroMode::KeepAllocated);
    let _ = disk.flush();
}

/// An image in which nothing was wrong is not made worse.
fn stays_whole(image: Qcow2Image, path: &Path) {
    drop(image);
    let (report, _) = check::check_file(path).expect("it was checked before");
    assert_eq!(report.errors, 0, "{report:?}");
}

/// Whoever tries what is like this gets far enough.
fn is_used(seed: &[u8]) {
    let (_open, path) = file(seed);
    let image = Qcow2Image::open(&path, Access::ReadWrite, &BackingRules::default());
    let begun = image.and_then(|image| image.begin_use());
    begun.expect("a seed is an image");
}

/// An image as pieces: where there is something, up to 255 bytes each.
fn pieces(image: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    let (mut at, mut end) = (0, 0);
    while let Some(skip) = image[at..].iter().position(|&byte| byte != 0) {
        let begin = (at + skip) / 8 * 8;
        let len = (image.len() - begin).min(64);
        let distance = u16::try_from((begin - end) / 8).expect("a small image");
        pieces.extend_from_slice(&distance.to_le_bytes());
        pieces.extend(counted(&image[begin..begin + len]));
        at = begin + len;
        end = at;
    }
    pieces
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("base.raw"), [1; 4096]).expect("a file");
    let mut seeds = Vec::new();
    for (size, backing) in [(64 << 10, None), (4 << 20, Some(("base.raw", Format::Raw)))] {
        let path = dir.path().join(format!("{size}.qcow2"));
        let image = NewImage {
            size,
            cluster_bits: 12,
            backing: backing.map(|(name, format)| (name.into(), format)),
        };
        create::create(&path, &image).expect("an image");
        let read = || std::fs::read(&path).expect("the image");
        seeds.push(pieces(&read()));
        let disk = Qcow2Image::open(&path, Access::ReadWrite, &BackingRules::default());
        let disk = disk.expect("the image");
        disk.begin_use().expect("the image");
        let mut bytes = [7; 512];
        for at in [0, 8192, 16384] {
            let written = disk.write(&[Buffer::new(&mut bytes)], at, Durability::Flushed);
            written.expect("a write");
        }
        disk.discard(8192, 4096).expect("a discard");
        disk.flush().expect("a flush");
        let mut image = read();
        seeds.push(pieces(&image));
        // One that was not closed.
        image[79] |= 1;
        seeds.push(pieces(&image));
        if backing.is_none() {
            seeds.iter().for_each(|seed| is_used(seed));
        }
    }
    seeds
}
