//! A recorded disk can be made as a power cut at any point would have left it.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::recorder::{Recorder, Recording};
use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage, ZeroMode};
use tempfile::TempDir;

const SIZE: u64 = 64 << 10;
const MUCH: u64 = 1 << 20;

fn image(path: &Path) -> Arc<dyn BlockDevice> {
    File::create(path).unwrap().set_len(SIZE).unwrap();
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn recorded(dir: &TempDir) -> (Arc<FaultLayer>, Recorder) {
    let faults = Arc::new(FaultLayer::new(image(&dir.path().join("disk"))));
    (faults.clone(), Recorder::in_memory(faults, MUCH))
}

fn write(disk: &dyn BlockDevice, sector: u64, values: &[u8], how: Durability) -> block::Result<()> {
    let mut bytes: Vec<u8> = values.iter().flat_map(|value| [*value; 512]).collect();
    disk.write(&[Buffer::new(&mut bytes)], sector * 512, how)
}

/// The first bytes of the first sectors, after a power cut.
fn after_cut(dir: &TempDir, recording: &Recording, point: usize, seed: u64) -> Vec<u8> {
    let path: PathBuf = dir.path().join("cut");
    recording.cut_power(point, seed, &*image(&path)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let sectors = bytes.chunks_exact(512);
    sectors
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "torn inside");
            sector[0]
        })
        .take(4)
        .collect()
}

/// What can be found after a power cut at a point.
fn found(dir: &TempDir, recording: &Recording, point: usize) -> HashSet<Vec<u8>> {
    (0..200)
        .map(|seed| after_cut(dir, recording, point, seed))
        .collect()
}

fn all(of: &[&[u8]]) -> HashSet<Vec<u8>> {
    of.iter().map(|one| one.to_vec()).collect()
}

#[test]
fn what_is_flushed_is_there_and_all_else_in_any_mixture() {
    let dir = TempDir::new().unwrap();
    let (_, disk) = recorded(&dir);
    write(&disk, 0, &[1, 1], Durability::Flushed).unwrap();
    let written = disk.point();
    disk.flush().unwrap();
    let flushed = disk.point();
    write(&disk, 1, &[2, 2], Durability::Flushed).unwrap();
    let again = disk.point();
    write(&disk, 3, &[3], Durability::Immediate).unwrap();
    let durable = disk.point();
    disk.write_zeroes(0, 512, ZeroMode::KeepAllocated).unwrap();
    disk.flush().unwrap();
    let recording = disk.recording();
    assert_eq!(recording.points(), disk.point());
    let found = |point| found(&dir, &recording, point);
    assert_eq!(found(0), all(&[&[0, 0, 0, 0]]));
    // Also when it had only begun.
    let any = all(&[&[0, 0, 0, 0], &[0, 1, 0, 0], &[1, 0, 0, 0], &[1, 1, 0, 0]]);
    assert_eq!(found(1), any);
    assert_eq!(found(written), any);
    // The flush had begun, and nobody was told that it is done.
    assert_eq!(found(flushed - 1), any);
    assert_eq!(found(flushed), all(&[&[1, 1, 0, 0]]));
    let mixed = all(&[&[1, 1, 0, 0], &[1, 1, 2, 0], &[1, 2, 0, 0], &[1, 2, 2, 0]]);
    assert_eq!(found(again), mixed);
    // What is durable at once makes nothing else so.
    let mixed = all(&[&[1, 1, 0, 3], &[1, 1, 2, 3], &[1, 2, 0, 3], &[1, 2, 2, 3]]);
    assert_eq!(found(durable), mixed);
    assert_eq!(found(recording.points()), all(&[&[0, 2, 2, 3]]));
}

#[test]
fn a_flush_or_a_write_that_failed_promises_nothing() {
    let dir = TempDir::new().unwrap();
    let (faults, disk) = recorded(&dir);
    for operation in [Operation::Flush, Operation::Discard] {
        faults.inject(Fault {
            operation,
            skip: 0,
            times: 1,
            effect: Effect::Fail(libc::EIO),
        });
    }
    write(&disk, 0, &[1], Durability::Flushed).unwrap();
    disk.flush().unwrap_err();
    let recording = disk.recording();
    let unsure = all(&[&[0, 0, 0, 0], &[1, 0, 0, 0]]);
    assert_eq!(found(&dir, &recording, recording.points()), unsure);
    disk.flush().unwrap();
    disk.discard(0, 512).unwrap_err();
    disk.flush().unwrap();
    let recording = disk.recording();
    assert_eq!(found(&dir, &recording, recording.points()), unsure);
}

#[test]
fn a_write_that_ends_while_a_flush_goes_on_is_not_its() {
    let dir = TempDir::new().unwrap();
    let (faults, disk) = recorded(&dir);
    faults.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Hang,
    });
    let disk = Arc::new(disk);
    let flushing = std::thread::spawn({
        let disk = disk.clone();
        move || disk.flush().unwrap()
    });
    faults.wait_hanging(1);
    write(&*disk, 0, &[1], Durability::Flushed).unwrap();
    faults.release();
    flushing.join().unwrap();
    let recording = disk.recording();
    let found = found(&dir, &recording, recording.points());
    assert_eq!(found, all(&[&[0, 0, 0, 0], &[1, 0, 0, 0]]));
}

#[test]
fn a_recording_to_a_file_is_right_up_to_where_it_ends() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("log");
    let disk = image(&dir.path().join("disk"));
    // Room for two writes and their flushes, and not for a third.
    let limit = 2 * (4 * 40 + 512) + 100;
    let disk = Recorder::to_file(disk, File::create(&log).unwrap(), limit);
    for round in 1..=3 {
        assert_eq!(disk.is_complete(), round < 4);
        write(&disk, 0, &[round], Durability::Flushed).unwrap();
        disk.flush().unwrap();
    }
    assert!(!disk.is_complete());
    assert_eq!(disk.point(), 8);
    let recording = Recording::open(&log).unwrap();
    assert_eq!(found(&dir, &recording, 8), all(&[&[2, 0, 0, 0]]));
    // As if whoever wrote it was killed in the middle, or had written anything.
    let bytes = std::fs::read(&log).unwrap();
    for len in 0..bytes.len() {
        let cut = Recording::read(&bytes[..len]).unwrap();
        assert!(cut.points() < 8);
    }
    let mut huge = bytes.clone();
    huge[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(Recording::read(&huge[..]).unwrap().points(), 0);
    let mut strange = bytes;
    strange[0] = 77;
    assert_eq!(Recording::read(&strange[..]).unwrap().points(), 0);
}
