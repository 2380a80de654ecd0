//! Devices whose beginning is kept back until all the rest is there.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use block::recorder::Recorder;
use block::sealed::Sealed;
use block::{
    Access, BlockDevice, Buffer, Content, Discarded, Durability, Error, ExtentKind, RawImage,
    ZeroMode,
};
use tempfile::TempDir;

const SIZE: u64 = 64 << 10;
const SAYS: &[u8] = b"vmm: a disk was being moved to this device";

fn image(path: &Path) -> Arc<RawImage> {
    File::create(path).unwrap().set_len(SIZE).unwrap();
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn write(disk: &dyn BlockDevice, bytes: &[u8], offset: u64) {
    let mut bytes = bytes.to_vec();
    let third = bytes.len() / 3;
    let (one, two) = bytes.split_at_mut(third);
    let buffers = [Buffer::new(one), Buffer::new(two)];
    disk.write(&buffers, offset, Durability::Flushed).unwrap();
}

fn read(disk: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    let (one, two) = bytes.split_at_mut(len / 3);
    let buffers = [Buffer::new(one), Buffer::new(two)];
    disk.read(&buffers, offset).unwrap();
    bytes
}

#[test]
fn the_beginning_is_there_from_when_it_is_opened_and_gone_when_it_is_sealed_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    let disk = Sealed::new(image(&path), b"of a move").unwrap();
    let on_storage = || fs::read(&path).unwrap();
    let mut expected = vec![0; SIZE as usize];
    assert!(on_storage().starts_with(SAYS));
    // Within it, across its end, and behind it.
    for (byte, offset, len) in [(1, 512, 1024), (2, 3584, 4096), (3, 8192, 512)] {
        write(&disk, &vec![byte; len], offset);
        expected[offset as usize..][..len].fill(byte);
    }
    disk.write_zeroes(1024, 512, ZeroMode::MayUnmap).unwrap();
    expected[1024..1536].fill(0);
    disk.write_zeroes(4000, 200, ZeroMode::KeepAllocated)
        .unwrap();
    expected[4000..4200].fill(0);
    if disk.discard(512, SIZE / 2).unwrap() == Discarded::Zero {
        expected[512..][..SIZE as usize / 2].fill(0);
    }
    assert_eq!(disk.discard(0, 512).unwrap(), Discarded::Kept);
    write(&disk, &[4; 9000], 100);
    expected[100..9100].fill(4);
    assert!(read(&disk, 0, SIZE as usize) == expected);
    assert!(read(&disk, 3000, 3000) == expected[3000..6000]);
    let stored = on_storage();
    assert!(stored.starts_with(SAYS) && stored[4096..] == expected[4096..]);

    disk.open().unwrap();
    assert!(on_storage() == expected);
    // What comes by then is there at once.
    write(&disk, &[5; 512], 512);
    expected[512..1024].fill(5);
    assert!(on_storage() == expected);
    disk.close().unwrap();
    assert!(on_storage().starts_with(SAYS));
    write(&disk, &[6; 512], 0);
    expected[..512].fill(6);
    assert!(on_storage().starts_with(SAYS));
    assert!(read(&disk, 0, SIZE as usize) == expected);
    disk.open().unwrap();
    assert!(on_storage() == expected);
}

#[test]
fn what_is_kept_back_is_told_as_data() {
    let dir = TempDir::new().unwrap();
    let disk = Sealed::new(image(&dir.path().join("disk")), b"").unwrap();
    let extents = disk.extents(0, SIZE, 10).unwrap();
    assert_eq!((extents[0].len, extents[0].kind), (4096, ExtentKind::Data));
    let end = extents.last().map(|extent| extent.offset + extent.len);
    assert_eq!(end, Some(SIZE));
    assert_eq!(disk.extents(512, SIZE - 512, 1).unwrap().len(), 1);
    assert_eq!(disk.extents(512, 512, 9).unwrap().len(), 1);
}

#[test]
fn what_has_no_room_for_a_seal_is_left_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, [7; 3584]).unwrap();
    let small = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let refused = Sealed::new(Arc::new(small), b"").unwrap_err();
    assert!(
        matches!(refused, Error::Size { size: 3584, .. }),
        "{refused}"
    );
    assert_eq!(fs::read(&path).unwrap(), [7; 3584]);
    let refused = Sealed::new(image(&dir.path().join("other")), &[0; 5000]);
    assert!(matches!(refused, Err(Error::Size { .. })));
}

#[test]
fn wherever_the_power_is_cut_it_is_sealed_or_whole() {
    let dir = TempDir::new().unwrap();
    let recorder = Arc::new(Recorder::in_memory(
        image(&dir.path().join("disk")),
        64 << 20,
    ));
    let disk = Sealed::new(recorder.clone(), b"of a move").unwrap();
    let sealed = recorder.point();
    let mut expected = vec![0; SIZE as usize];
    for round in 0..40_u64 {
        let (byte, sector) = (round as u8 + 1, round * 37 % 120);
        write(&disk, &[byte; 2048], sector * 512);
        expected[sector as usize * 512..][..2048].fill(byte);
        if round % 7 == 6 {
            disk.flush().unwrap();
        }
    }
    // As a move does: all else is durable when it is opened.
    disk.flush().unwrap();
    let opens = recorder.point();
    disk.open().unwrap();
    let opened = recorder.point();
    disk.close().unwrap();
    let closed = recorder.point();
    let recording = recorder.recording();
    let path = dir.path().join("after");
    let (mut seals, mut wholes) = (0, 0);
    for point in sealed..=recording.points() {
        recording
            .cut_power(point, point as u64, &*image(&path))
            .unwrap();
        let after = fs::read(&path).unwrap();
        let is_sealed = after.starts_with(SAYS);
        assert!(is_sealed || after == expected, "neither at {point}");
        if point <= opens || point >= closed {
            assert!(is_sealed, "not sealed at {point}");
        }
        if point == opened {
            assert!(!is_sealed, "not open at {point}");
        }
        seals += u32::from(is_sealed);
        wholes += u32::from(!is_sealed);
    }
    assert!(seals > 30 && wholes > 0, "{seals} {wholes}");
}
