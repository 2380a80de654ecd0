//! The tracker tells every change, to each of its users, while others write.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::tracker::{BLOCK, ChangeMap, Changed, Generation, Tracker};
use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage, ZeroMode};
use proptest::prelude::*;

fn image(path: &Path, size: u64) -> Arc<dyn BlockDevice> {
    File::create(path).unwrap().set_len(size).unwrap();
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn tracked(dir: &tempfile::TempDir, size: u64) -> Tracker {
    let map = Arc::new(ChangeMap::new(size));
    Tracker::new(image(&dir.path().join("disk"), size), map)
}

fn write(disk: &dyn BlockDevice, offset: u64, len: usize) {
    let mut bytes = vec![1; len];
    let buffers = [Buffer::new(&mut bytes)];
    disk.write(&buffers, offset, Durability::Flushed).unwrap();
}

fn listed(ranges: Changed<'_>) -> Vec<(u64, u64)> {
    ranges.map(|range| (range.start, range.end)).collect()
}

fn changed(map: &ChangeMap, since: Generation) -> Vec<(u64, u64)> {
    listed(map.changed_since(since))
}

#[test]
fn every_kind_of_change_is_told_in_ranges_to_whoever_asks_since_when() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3000 * BLOCK + 512;
    let disk = tracked(&dir, size);
    let map = disk.map().clone();
    assert_eq!(changed(&map, Generation::FIRST), []);
    // The last byte of one block and the first of the next; across pages of the map; the last block, which is short.
    write(&disk, BLOCK - 1, 2);
    disk.discard(1023 * BLOCK, 2 * BLOCK).unwrap();
    disk.write_zeroes(size - 512, 512, ZeroMode::MayUnmap)
        .unwrap();
    let all = vec![
        (0, 2 * BLOCK),
        (1023 * BLOCK, 1025 * BLOCK),
        (3000 * BLOCK, size),
    ];
    assert_eq!(changed(&map, Generation::FIRST), all);
    let first = map.begin_generation();
    assert!(first > Generation::FIRST);
    assert_eq!(changed(&map, first), []);
    disk.read(&[Buffer::new(&mut [0; 512])], 0).unwrap();
    disk.flush().unwrap();
    assert_eq!(changed(&map, first), []);
    write(&disk, 5 * BLOCK, 512);
    let second = map.begin_generation();
    write(&disk, 6 * BLOCK, 512);
    assert_eq!(changed(&map, second), [(6 * BLOCK, 7 * BLOCK)]);
    assert_eq!(changed(&map, first), [(5 * BLOCK, 7 * BLOCK)]);
    assert_eq!(changed(&map, Generation::FIRST).len(), 4);
    let behind = map.changed_since(Generation::FIRST).from(1024 * BLOCK + 1);
    assert_eq!(behind.count(), 2);
}

#[test]
fn a_change_that_failed_or_lies_outside_is_harmless_and_the_first_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    drop(image(&path, BLOCK));
    let only_read = RawImage::open(&path, Access::ReadOnly, Content::Raw).unwrap();
    let map = Arc::new(ChangeMap::new(BLOCK));
    let disk = Tracker::new(Arc::new(only_read), map.clone());
    assert!(disk.discard(0, 512).is_err());
    assert_eq!(changed(&map, Generation::FIRST), [(0, BLOCK)]);
    let since = map.begin_generation();
    for (offset, len) in [(BLOCK, 1), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, 0)] {
        assert!(disk.discard(offset, len).is_err());
    }
    assert_eq!(changed(&map, since), []);
}

#[test]
fn a_change_that_is_under_way_is_told_again_when_it_has_ended() {
    let map = ChangeMap::new(8 * BLOCK);
    let change = map.begin_change(0, 1);
    let first = map.begin_generation();
    // It began before.
    assert_eq!(changed(&map, Generation::FIRST), [(0, BLOCK)]);
    let second = map.begin_generation();
    drop(change);
    assert_eq!(changed(&map, first), [(0, BLOCK)]);
    assert_eq!(changed(&map, second), [(0, BLOCK)]);
    let third = map.begin_generation();
    assert_eq!(changed(&map, third), []);
}

#[test]
fn blocks_that_change_often_can_be_put_off() {
    let map = ChangeMap::new(8 * BLOCK);
    for round in 0..40 {
        map.begin_change(2 * BLOCK, 512);
        map.begin_change(2 * BLOCK, 512);
        if round == 7 {
            map.begin_change(3 * BLOCK, 512);
        }
        map.begin_generation();
    }
    assert_eq!([2, 3, 4].map(|b| map.heat(b * BLOCK)), [40, 1, 0]);
    let cold = map.changed_since(Generation::FIRST).of_heat(0..=10);
    assert_eq!(listed(cold), [(3 * BLOCK, 4 * BLOCK)]);
    let hot = map.changed_since(Generation::FIRST).of_heat(11..=255);
    assert_eq!(listed(hot), [(2 * BLOCK, 3 * BLOCK)]);
    map.cool();
    assert_eq!([2, 3].map(|b| map.heat(b * BLOCK)), [20, 0]);
    for _ in 0..300 {
        map.begin_generation();
        map.begin_change(2 * BLOCK, 512);
    }
    assert_eq!(map.heat(2 * BLOCK), 255);
    assert_eq!(map.heat(u64::MAX), 0);
}

/// What a writer does, at which sector, to how many.
#[derive(Debug, Clone, Copy)]
enum Step {
    Write(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64),
}

const SECTORS: u64 = 8 * BLOCK / 512;

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SECTORS, 1..300_u64).prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    (range, 0..4).prop_map(|((at, len), kind)| match kind {
        0 => Step::Discard(at, len),
        1 => Step::Zero(at, len),
        _ => Step::Write(at, len),
    })
}

fn take(disk: &dyn BlockDevice, step: Step, value: u8) {
    match step {
        Step::Write(at, len) => {
            let mut bytes = vec![value; (len * 512) as usize];
            let buffers = [Buffer::new(&mut bytes)];
            disk.write(&buffers, at * 512, Durability::Flushed).unwrap();
        }
        Step::Discard(at, len) => drop(disk.discard(at * 512, len * 512).unwrap()),
        Step::Zero(at, len) => disk
            .write_zeroes(at * 512, len * 512, ZeroMode::MayUnmap)
            .unwrap(),
    }
}

/// Copies what changed since `since`; since when the next pass has to look.
fn pass(disk: &Tracker, since: Generation, copy: &dyn BlockDevice) -> Generation {
    let next = disk.map().begin_generation();
    for range in disk.map().changed_since(since) {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        disk.read(&[Buffer::new(&mut bytes)], range.start).unwrap();
        let buffers = [Buffer::new(&mut bytes)];
        copy.write(&buffers, range.start, Durability::Flushed)
            .unwrap();
    }
    next
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whoever_copies_what_changed_has_all_of_it_in_the_end(
        writers in prop::collection::vec(prop::collection::vec(step(), 1..60), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let disk = tracked(&dir, SECTORS * 512);
        let at_work = AtomicUsize::new(writers.len());
        let paths = ["first", "second"].map(|name| dir.path().join(name));
        std::thread::scope(|scope| {
            for (index, steps) in writers.iter().enumerate() {
                let (disk, at_work) = (&disk, &at_work);
                scope.spawn(move || {
                    for (round, step) in steps.iter().enumerate() {
                        take(disk, *step, (1 + index + 4 * round) as u8);
                    }
                    at_work.fetch_sub(1, Ordering::SeqCst);
                });
            }
            for path in &paths {
                let (disk, at_work) = (&disk, &at_work);
                let copy = image(path, disk.size());
                scope.spawn(move || {
                    let mut since = Generation::FIRST;
                    loop {
                        let is_last = at_work.load(Ordering::SeqCst) == 0;
                        since = pass(disk, since, &*copy);
                        if is_last {
                            break;
                        }
                    }
                });
            }
        });
        let original = std::fs::read(dir.path().join("disk")).unwrap();
        for path in &paths {
            prop_assert!(std::fs::read(path).unwrap() == original, "{path:?} differs");
        }
    }
}
