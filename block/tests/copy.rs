//! A disk is copied to another image while it is written.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::copy::{Copy, CopyError, Steering, Target};
use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::recorder::Recorder;
use block::tracker::{BLOCK, ChangeMap, Tracker};
use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage, ZeroMode};
use tempfile::TempDir;

const SIZE: u64 = 6 << 20;

struct Scene {
    dir: TempDir,
    /// The image as the copy reads it.
    image: Arc<dyn BlockDevice>,
    /// As its guest writes it.
    disk: Arc<Tracker>,
}

fn raw(path: &Path) -> Arc<RawImage> {
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn made(path: &Path, size: u64) -> Arc<RawImage> {
    File::create(path).unwrap().set_len(size).unwrap();
    raw(path)
}

fn write(disk: &dyn BlockDevice, offset: u64, len: usize, value: u8) {
    let mut bytes = vec![value; len];
    disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed)
        .unwrap();
}

impl Scene {
    fn of(size: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let image = made(&dir.path().join("source"), size);
        let disk = Tracker::new(image.clone(), Arc::new(ChangeMap::new(size)));
        Self {
            dir,
            image,
            disk: Arc::new(disk),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy_to(&self, target: Arc<dyn BlockDevice>) -> Copy {
        Copy::new(self.image.clone(), target, self.disk.map().clone())
    }

    fn is_copied(&self) {
        let [source, target] = ["source", "target"].map(|name| fs::read(self.path(name)).unwrap());
        let differs = source.iter().zip(&target).position(|(a, b)| a != b);
        assert_eq!((source.len(), differs), (target.len(), None));
    }

    fn allocated(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().blocks() * 512
    }
}

fn steering() -> Steering {
    Steering::new(None, Duration::ZERO)
}

#[test]
fn a_copy_holds_what_the_disk_does_and_no_more() {
    // A size that is no multiple of a block, nor of a piece.
    let scene = Scene::of(SIZE + 5 * 512);
    write(&*scene.disk, 4096, 4096, 1);
    write(&*scene.disk, (1 << 20) - 8192, 100_000 / 512 * 512, 2);
    write(&*scene.disk, SIZE, 5 * 512, 3);
    // Zeroes that take room at the source take none at the target.
    write(&*scene.disk, 3 << 20, 1 << 20, 0);
    let target = made(&scene.path("target"), SIZE + 5 * 512);
    let mut copy = scene.copy_to(target);
    let pass = copy.all(Target::Blank, &steering()).unwrap();
    assert_eq!(pass.bytes, copy.allocated().unwrap());
    assert_eq!(copy.left(), 0);
    copy.flush().unwrap();
    scene.is_copied();
    assert!(scene.allocated("target") + (1 << 20) <= scene.allocated("source"));
}

#[test]
fn each_pass_copies_the_blocks_that_were_written_since_the_one_before() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 0, SIZE as usize, 1);
    let mut copy = scene.copy_to(made(&scene.path("target"), SIZE));
    let steering = steering();
    copy.all(Target::Blank, &steering).unwrap();
    write(&*scene.disk, 512, 512, 2);
    write(&*scene.disk, 5 * BLOCK - 512, 1024, 3);
    assert_eq!(copy.left(), 3 * BLOCK);
    assert_eq!(copy.changed(&steering).unwrap().bytes, 3 * BLOCK);
    assert_eq!(copy.left(), 0);
    scene.is_copied();
    // What is given back at the source is given back at the target.
    scene.disk.discard(1 << 20, 2 << 20).unwrap();
    write(&*scene.disk, 8 * BLOCK, 512, 4);
    copy.changed(&steering).unwrap();
    scene.is_copied();
    assert!(scene.allocated("target") <= scene.allocated("source"));
}

#[test]
fn what_was_in_a_target_is_written_over() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 1 << 20, 4096, 1);
    let target = made(&scene.path("target"), SIZE);
    write(&*target, 0, SIZE as usize, 9);
    let mut copy = scene.copy_to(target);
    copy.all(Target::Holds, &steering()).unwrap();
    scene.is_copied();
    assert!(scene.allocated("target") <= scene.allocated("source"));
}

#[test]
fn what_is_written_at_any_moment_is_copied() {
    let scene = Scene::of(SIZE);
    let mut copy = scene.copy_to(made(&scene.path("target"), SIZE));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in [3_u64, 11] {
            let (disk, stop) = (&scene.disk, &stop);
            scope.spawn(move || {
                let mut at = seed;
                while !stop.load(Ordering::Relaxed) {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(seed);
                    let offset = (at >> 20) % (SIZE / 512 - 64) * 512;
                    let len = 512 * (1 + (at >> 9) % 64);
                    match at % 7 {
                        0 => drop(disk.discard(offset, len).unwrap()),
                        1 => disk.write_zeroes(offset, len, ZeroMode::MayUnmap).unwrap(),
                        _ => write(&**disk, offset, len as usize, at as u8),
                    }
                }
            });
        }
        let steering = steering();
        copy.all(Target::Blank, &steering).unwrap();
        for _ in 0..20 {
            copy.changed(&steering).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    copy.rest(SIZE).unwrap();
    scene.is_copied();
}

#[test]
fn whatever_a_power_cut_leaves_after_the_end_holds_all_of_it() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 0, 1 << 20, 1);
    let target = made(&scene.path("target"), SIZE);
    let recorder = Arc::new(Recorder::in_memory(target, 64 << 20));
    let mut copy = scene.copy_to(recorder.clone());
    let steering = steering();
    copy.all(Target::Blank, &steering).unwrap();
    write(&*scene.disk, 2 << 20, 300 << 10, 2);
    copy.changed(&steering).unwrap();
    copy.flush().unwrap();
    // Both are told the guest that they are done, and the second is not flushed at the source.
    write(&*scene.disk, 512 << 10, 64 << 10, 3);
    scene.disk.flush().unwrap();
    write(&*scene.disk, 4 << 20, 64 << 10, 4);
    copy.rest(SIZE).unwrap();
    copy.flush().unwrap();
    let decided = recorder.point();
    // The guest goes on at the target.
    write(&*recorder, 5 << 20, 64 << 10, 5);
    recorder.flush().unwrap();
    let flushed = recorder.point();
    write(&*recorder, 0, 4096, 6);
    let recording = recorder.recording();
    let expected = fs::read(scene.path("source")).unwrap();
    for point in decided..=recording.points() {
        for seed in 0..20 {
            let path = scene.path("cut");
            recording
                .cut_power(point, seed, &*made(&path, SIZE))
                .unwrap();
            let mut found = fs::read(&path).unwrap();
            let [head, tail] = [0..4096, 5 << 20..(5 << 20) + (64 << 10)];
            if point >= flushed {
                assert!(found[tail.clone()].iter().all(|byte| *byte == 5), "{point}");
            }
            // What was written at the target and not flushed may be there or not.
            for range in [head, tail] {
                found[range.clone()].copy_from_slice(&expected[range]);
            }
            assert!(found == expected, "lost at point {point}, seed {seed}");
        }
    }
}

#[test]
fn more_than_may_be_is_not_copied_while_requests_wait() {
    let scene = Scene::of(SIZE);
    let mut copy = scene.copy_to(made(&scene.path("target"), SIZE));
    copy.all(Target::Blank, &steering()).unwrap();
    write(&*scene.disk, 0, 2 * BLOCK as usize, 1);
    let refused = copy.rest(BLOCK);
    assert!(
        matches!(refused, Err(CopyError::TooMuch { left, most }) if (left, most) == (2 * BLOCK, BLOCK))
    );
    // As if it had not been tried.
    assert_eq!(copy.changed(&steering()).unwrap().bytes, 2 * BLOCK);
    scene.is_copied();
}

#[test]
fn a_target_that_fails_or_a_disk_that_cannot_be_read_is_told_and_a_pass_may_be_tried_again() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 0, 1 << 20, 1);
    let target = Arc::new(FaultLayer::new(made(&scene.path("target"), SIZE)));
    target.inject(Fault {
        operation: Operation::Write,
        skip: 0,
        times: 1,
        effect: Effect::Fail(libc::ENOSPC),
    });
    let mut copy = scene.copy_to(target.clone());
    let failed = copy.all(Target::Blank, &steering());
    assert!(matches!(failed, Err(CopyError::Target(_))), "{failed:?}");
    copy.all(Target::Blank, &steering()).unwrap();
    scene.is_copied();
}

#[test]
fn a_copy_that_is_cancelled_stops_also_while_it_waits() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 0, SIZE as usize, 1);
    let mut copy = scene.copy_to(made(&scene.path("target"), SIZE));
    // The first piece takes what there is for a long time.
    let steering = Steering::new(Some(1), Duration::ZERO);
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy.all(Target::Blank, &steering));
        while steering.progress().done == 0 {
            std::thread::yield_now();
        }
        assert_eq!(steering.progress().done, 1 << 20);
        assert!(steering.cancel());
        let stopped = copying.join().unwrap();
        assert!(matches!(stopped, Err(CopyError::Cancelled)), "{stopped:?}");
    });
    assert_eq!(steering.progress().done, 1 << 20);
}

#[test]
fn a_copy_that_is_paused_goes_on_where_it_was() {
    let scene = Scene::of(SIZE);
    write(&*scene.disk, 0, SIZE as usize, 1);
    let mut copy = scene.copy_to(made(&scene.path("target"), SIZE));
    let steering = steering();
    assert!(steering.pause());
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy.all(Target::Blank, &steering));
        // Not one piece comes while it waits; that it will be told of is what resuming shows.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(steering.progress().done, 0);
        assert!(steering.resume());
        assert_eq!(copying.join().unwrap().unwrap().bytes, SIZE);
    });
    scene.is_copied();
}
