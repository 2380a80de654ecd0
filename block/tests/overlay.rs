//! A disk that goes on in overlays while what lies below is copied, and comes together again.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::copy::{Copy, CopyError, Steering, Target, total};
use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::image::qcow2::create::{self, NewImage};
use block::image::qcow2::overlay::{self, CLUSTER_BITS, Lower, NewBelow};
use block::image::qcow2::{BackingRules, Qcow2Image};
use block::image::{Format, Image};
use block::recorder::Recorder;
use block::room::Room;
use block::tracker::ChangeMap;
use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage, Reach, ZeroMode};
use tempfile::TempDir;

mod judge;

const SIZE: u64 = 8 << 20;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

struct Scene {
    dir: TempDir,
}

fn write(disk: &dyn BlockDevice, offset: u64, len: u64, value: u8) {
    let mut bytes = vec![value; len as usize];
    disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed)
        .unwrap();
}

fn content(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
    bytes
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn raw(&self, name: &str) -> Image {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        RawImage::open(&path, Access::ReadWrite, Content::Raw)
            .unwrap()
            .into()
    }

    fn qcow2(&self, name: &str, backing: Option<(PathBuf, Format)>) -> Image {
        let path = self.path(name);
        let image = NewImage {
            size: SIZE,
            cluster_bits: CLUSTER_BITS,
            backing,
        };
        create::create(&path, &image).unwrap();
        self.opened(name)
    }

    fn opened(&self, name: &str) -> Image {
        let image = Qcow2Image::open(self.path(name), Access::ReadWrite, &BackingRules::default());
        let image = image.unwrap();
        image.begin_use().unwrap();
        image.into()
    }

    /// The file of an overlay over `below`, of which nothing is in use yet.
    fn overlay(&self, name: &str, below: &Image) -> Arc<RawImage> {
        let path = self.path(name);
        create::create_overlay(&path, &over(below)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let access = Access::ReadWrite;
        let file = RawImage::from_opened(file, path, access, Content::Container, Reach::ThisHost);
        Arc::new(file.unwrap())
    }

    fn is(&self, name: &str, format: &str, wanted: &[u8]) {
        let wants = self.path("wanted");
        fs::write(&wants, wanted).unwrap();
        let (image, wants) = (self.path(name), wants);
        let [image, wants] = [&image, &wants].map(|path| path.to_str().unwrap());
        judge::must(&["compare", "-q", "-f", format, "-F", "raw", image, wants]);
    }
}

fn over(below: &Image) -> NewImage {
    NewImage {
        size: SIZE,
        cluster_bits: CLUSTER_BITS,
        backing: Some((below.file().path().to_owned(), below.format())),
    }
}

fn used(file: &Arc<RawImage>, lower: &Lower) -> Arc<Qcow2Image> {
    let image = Qcow2Image::over_opened(file.clone(), lower).unwrap();
    image.begin_use().unwrap();
    Arc::new(image)
}

fn reparent(file: &Arc<RawImage>, below: &Image) {
    let name = NewBelow::write(file, below.file().path(), below.format());
    name.unwrap().lead().unwrap();
}

fn steering() -> Steering {
    Steering::new(None, Duration::ZERO)
}

fn copy(from: Arc<dyn BlockDevice>, to: &Image) -> Copy {
    let size = from.size();
    Copy::new(from, to.device(), Arc::new(ChangeMap::new(size)))
}

/// Brings what `overlay` has to `base`.
fn consolidate(overlay: &Arc<Qcow2Image>, base: &Image) -> Vec<Range<u64>> {
    let own = overlay.own_ranges().unwrap();
    let pass = copy(overlay.clone(), base)
        .ranges(&own, &steering())
        .unwrap();
    assert!(pass.bytes <= total(&own));
    base.device().flush().unwrap();
    own
}

#[test]
fn what_lies_below_stays_as_it_is_and_is_read_where_the_overlay_has_nothing() {
    let scene = Scene::new();
    let backing = scene.qcow2("backing.qcow2", None);
    write(&*backing.device(), 0, CLUSTER, 1);
    backing.device().flush().unwrap();
    drop(backing);
    let chain = Some((scene.path("backing.qcow2"), Format::Qcow2));
    for parent in [scene.raw("parent.raw"), scene.qcow2("parent.qcow2", chain)] {
        let disk = parent.device();
        write(&*disk, 3 * CLUSTER, CLUSTER + 512, 2);
        disk.flush().unwrap();
        let (before, seen) = (fs::read(parent.file().path()).unwrap(), content(&*disk));
        let name = format!("over-{}.qcow2", parent.format());
        let file = scene.overlay(&name, &parent);
        let child = used(&file, &parent.lower());
        assert_eq!(content(&*child), seen);
        assert_eq!(child.own_ranges().unwrap(), []);
        // Parts of clusters, a hole in what is below, and zeroes where there was nothing.
        write(&*child, 4 * CLUSTER + 1024, 512, 3);
        child.discard(3 * CLUSTER, CLUSTER).unwrap();
        child
            .write_zeroes(SIZE - CLUSTER, CLUSTER, ZeroMode::MayUnmap)
            .unwrap();
        child.flush().unwrap();
        let mut wanted = seen;
        let at = |from: u64, len: u64| from as usize..(from + len) as usize;
        wanted[at(4 * CLUSTER + 1024, 512)].fill(3);
        wanted[at(3 * CLUSTER, CLUSTER)].fill(0);
        assert!(content(&*child) == wanted);
        let own = child.own_ranges().unwrap();
        assert_eq!(own[0], 3 * CLUSTER..5 * CLUSTER);
        assert!(fs::read(parent.file().path()).unwrap() == before, "{name}");
        drop(child);
        scene.is(&name, "qcow2", &wanted);
        judge::check(&scene.path(&name));
        // And whoever comes later finds it by the name in its header.
        assert!(content(&*scene.opened(&name).device()) == wanted);
    }
}

#[test]
fn an_overlay_is_given_another_image_below_and_is_one_or_the_other_at_any_moment() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    write(&*parent.device(), 0, 2 * CLUSTER, 1);
    let target = scene.qcow2("target.qcow2", None);
    copy(parent.device(), &target)
        .all(Target::Blank, &steering())
        .unwrap();
    target.device().flush().unwrap();
    let file = scene.overlay("over.qcow2", &parent);
    let child = used(&file, &parent.lower());
    write(&*child, CLUSTER, 512, 2);
    child.flush().unwrap();
    let wanted = content(&*child);
    let mut before = Vec::new();
    // To and fro: each name takes the place that nothing leads to.
    for (below, sizes) in [(&target, 2), (&parent, 3), (&target, 4)] {
        before = fs::read(file.path()).unwrap();
        reparent(&file, below);
        let again = used(&file, &below.lower());
        assert!(content(&*again) == wanted, "{sizes}");
        let opened = scene.opened("over.qcow2");
        let Image::Qcow2(opened) = &opened else {
            unreachable!()
        };
        assert_eq!(opened.below()[0].path(), below.file().path());
        assert_eq!(opened.below()[0].format(), below.format());
    }
    scene.is("over.qcow2", "qcow2", &wanted);
    judge::check(file.path());
    // Whatever of the writes between the two has reached the storage, sector by sector: the header leads to one of them.
    let after = fs::read(file.path()).unwrap();
    let differ = (0..before.len() / 512)
        .filter(|sector| before[sector * 512..][..512] != after[sector * 512..][..512])
        .collect::<Vec<_>>();
    assert!(differ.contains(&0) && differ.len() <= 5, "{differ:?}");
    for torn in 0..1_u32 << (differ.len() - 1) {
        let mut cut = before.clone();
        for (bit, sector) in differ.iter().filter(|sector| **sector != 0).enumerate() {
            if torn >> bit & 1 == 1 {
                let range = sector * 512..(sector + 1) * 512;
                cut[range.clone()].copy_from_slice(&after[range]);
            }
        }
        fs::write(scene.path("cut.qcow2"), &cut).unwrap();
        assert!(content(&*scene.opened("cut.qcow2").device()) == wanted);
    }
}

#[test]
fn a_name_that_would_be_read_as_another_is_refused_and_the_overlay_stays() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    let file = scene.overlay("over.qcow2", &parent);
    let before = fs::read(file.path()).unwrap();
    for name in ["nbd:host", &"x".repeat(1024)] {
        NewBelow::write(&file, Path::new(name), Format::Raw).unwrap_err();
    }
    assert!(fs::read(file.path()).unwrap() == before);
}

#[test]
fn an_overlay_that_was_consolidated_is_made_empty_and_used_again() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    let file = scene.overlay("over.qcow2", &parent);
    let child = used(&file, &parent.lower());
    write(&*child, 0, 5 << 20, 1);
    child.flush().unwrap();
    let wanted = content(&*child);
    consolidate(&child, &parent);
    drop(child);
    let long = fs::metadata(file.path()).unwrap().len();
    overlay::reset(&file, &over(&parent)).unwrap();
    assert!(fs::metadata(file.path()).unwrap().len() < long / 8);
    let child = used(&file, &parent.lower());
    assert_eq!(child.own_ranges().unwrap(), []);
    assert!(content(&*child) == wanted);
    write(&*child, CLUSTER, 512, 2);
    child.flush().unwrap();
    judge::check(file.path());
}

#[test]
fn rounds_bring_all_together_that_is_written_at_any_moment() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    write(&*parent.device(), 0, SIZE / 2, 1);
    let frozen = fs::read(scene.path("parent.raw")).unwrap();
    let target = scene.qcow2("target.qcow2", None);
    let files = [0, 1, 2].map(|n| scene.overlay(&format!("over-{n}.qcow2"), &parent));
    let mut active = used(&files[0], &parent.lower());
    let mut below: Option<Arc<Qcow2Image>> = None;
    let mut seed = 1_u64;
    for round in 0..6 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in [3_u64, 11] {
                let (disk, stop) = (active.clone(), &stop);
                let mut at = writer + seed;
                scope.spawn(move || {
                    let mut left = 40;
                    while left > 0 && !stop.load(Ordering::Relaxed) {
                        left -= 1;
                        at = at
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(writer);
                        let offset = (at >> 20) % (SIZE / 512 - 64) * 512;
                        let len = 512 * (1 + (at >> 9) % 64);
                        match at % 7 {
                            0 => drop(disk.discard(offset, len).unwrap()),
                            1 => disk.write_zeroes(offset, len, ZeroMode::MayUnmap).unwrap(),
                            _ => write(&*disk, offset, len, at as u8),
                        }
                    }
                });
            }
            match &below {
                None => {
                    let mut bulk = copy(parent.device(), &target);
                    bulk.all(Target::Blank, &steering()).unwrap();
                    target.device().flush().unwrap();
                }
                Some(below) => drop(consolidate(below, &target)),
            }
            if round == 5 {
                stop.store(true, Ordering::Relaxed);
            }
        });
        seed += 100;
        // No request is under way: the next one takes its place.
        active.flush().unwrap();
        let seen = content(&*active);
        let file = active.file().clone();
        reparent(&file, &target);
        let frozen = used(&file, &target.lower());
        assert!(content(&*frozen) == seen, "round {round}");
        let next = &files[(round + 1) % 3];
        overlay::reset(next, &over(&Image::Qcow2(frozen.clone()))).unwrap();
        let lower = Lower::Qcow2(frozen.clone());
        active = used(next, &lower);
        assert!(content(&*active) == seen, "round {round}");
        below = Some(frozen);
    }
    consolidate(below.as_ref().unwrap(), &target);
    let own = active.own_ranges().unwrap();
    let mut last = copy(active.clone(), &target);
    last.last_ranges(&own, total(&own)).unwrap();
    target.device().flush().unwrap();
    let wanted = content(&*active);
    assert!(content(&*target.device()) == wanted);
    assert!(fs::read(scene.path("parent.raw")).unwrap() == frozen);
    drop((active, below));
    scene.is("target.qcow2", "qcow2", &wanted);
    judge::check(&scene.path("target.qcow2"));
}

#[test]
fn more_than_may_be_is_not_consolidated_while_requests_wait() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    let child = used(&scene.overlay("over.qcow2", &parent), &parent.lower());
    write(&*child, 0, 2 * CLUSTER, 1);
    let own = child.own_ranges().unwrap();
    let refused = copy(child.clone(), &parent).last_ranges(&own, CLUSTER);
    assert!(
        matches!(refused, Err(CopyError::TooMuch { left, most }) if (left, most) == (2 * CLUSTER, CLUSTER))
    );
    assert!(content(&*parent.device()).iter().all(|byte| *byte == 0));
}

/// The disk as it is in the overlays `chain`, the uppermost last, over what a power cut has left at `base`.
fn seen(chain: &[&Arc<RawImage>], base: Arc<RawImage>) -> Vec<u8> {
    let mut lower = Lower::Raw(base.clone());
    let mut top: Arc<dyn BlockDevice> = base;
    for file in chain {
        let image = used(file, &lower);
        lower = Lower::Qcow2(image.clone());
        top = image;
    }
    content(&*top)
}

/// From which point on the disk is which chain over the target, the lower overlay first, and what was flushed there.
type Standing<'f> = (usize, Vec<&'f Arc<RawImage>>, Vec<u8>);

/// Bytes that are brought to the target at once, where each such write may be lost.
const STEP: usize = 16 << 10;

#[test]
fn a_power_cut_at_any_point_leaves_every_flushed_write_where_the_record_says() {
    let scene = Scene::new();
    let parent = scene.raw("parent.raw");
    for cluster in (0..SIZE / CLUSTER).step_by(3) {
        write(
            &*parent.device(),
            cluster * CLUSTER,
            CLUSTER,
            cluster as u8 + 1,
        );
    }
    let target = scene.raw("target.raw");
    let recorder = Arc::new(Recorder::in_memory(target.device(), 64 << 20));
    let to_target = |from: Arc<dyn BlockDevice>| {
        let size = from.size();
        Copy::new(from, recorder.clone(), Arc::new(ChangeMap::new(size)))
    };
    let files = [0, 1, 2].map(|n| scene.overlay(&format!("over-{n}.qcow2"), &parent));
    let mut standings: Vec<Standing<'_>> = Vec::new();
    let mut active = used(&files[0], &parent.lower());
    write(&*active, CLUSTER, 2 * CLUSTER, 0xa0);
    active.flush().unwrap();
    let mut bulk = to_target(parent.device());
    bulk.all(Target::Blank, &steering()).unwrap();
    bulk.flush().unwrap();
    standings.push((recorder.point(), vec![&files[0]], content(&*active)));
    for round in 0..6_u64 {
        let frozen = used(&files[round as usize % 3], &target.lower());
        let next = &files[(round as usize + 1) % 3];
        overlay::reset(next, &over(&Image::Qcow2(frozen.clone()))).unwrap();
        active = used(next, &Lower::Qcow2(frozen.clone()));
        for at in 0..8 {
            let offset = (round * 37 + at * 13) % (SIZE / 4096 - 1) * 4096;
            write(&*active, offset, 4096, (round * 16 + at) as u8 | 1);
        }
        active.flush().unwrap();
        let below = &files[round as usize % 3];
        let expected = content(&*active);
        standings.push((recorder.point(), vec![below, next], expected.clone()));
        let own = frozen.own_ranges().unwrap();
        // One part of a cluster after the other, each of which a power cut may lose.
        for range in own.iter().flat_map(|range| {
            (range.start..range.end)
                .step_by(STEP)
                .map(|at| at..at + STEP as u64)
        }) {
            to_target(frozen.clone())
                .ranges(&[range], &steering())
                .unwrap();
        }
        to_target(frozen.clone()).flush().unwrap();
        standings.push((recorder.point(), vec![next], expected));
        if round < 5 {
            // The overlay of the round before is used again: the points of it are judged first.
            judge_points(&scene, &recorder, &mut standings);
        }
    }
    let own = active.own_ranges().unwrap();
    to_target(active.clone())
        .last_ranges(&own, total(&own))
        .unwrap();
    to_target(active.clone()).flush().unwrap();
    standings.push((recorder.point(), Vec::new(), content(&*active)));
    let points = recorder.recording().points();
    assert!(points >= 200, "{points} points");
    judge_points(&scene, &recorder, &mut standings);
}

/// Cuts the power at each point from the first standing on, and leaves the last one.
fn judge_points(scene: &Scene, recorder: &Recorder, standings: &mut Vec<Standing<'_>>) {
    let recording = recorder.recording();
    for (index, (from, chain, expected)) in standings.iter().enumerate() {
        let to = standings
            .get(index + 1)
            .map_or(recording.points() + 1, |next| next.0.max(from + 1));
        for point in *from..to {
            let path = scene.path("cut.raw");
            File::create(&path).unwrap().set_len(SIZE).unwrap();
            let cut = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
            recording.cut_power(point, point as u64, &cut).unwrap();
            let found = seen(chain, Arc::new(cut));
            assert!(
                found == *expected,
                "lost at point {point}, standing {index}"
            );
        }
    }
    standings.drain(..standings.len() - 1);
}

#[test]
fn a_change_without_room_waits_until_somebody_gives_up_and_one_that_is_held_does_too() {
    let scene = Scene::new();
    let disk = scene.raw("disk.raw").device();
    let faults = Arc::new(FaultLayer::new(disk));
    faults.inject(Fault {
        operation: Operation::Write,
        skip: 1,
        times: 3,
        effect: Effect::Fail(libc::ENOSPC),
    });
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let room = Room::new(faults, Box::new(move || tell.store(true, Ordering::SeqCst)));
    let change = || {
        let mut bytes = vec![1; 512];
        BlockDevice::write(&room, &[Buffer::new(&mut bytes)], 0, Durability::Flushed)
    };
    change().unwrap();
    assert!(!room.is_full() && !told.load(Ordering::SeqCst));
    assert!(change().unwrap_err().is_for_now());
    assert!(room.is_full() && told.load(Ordering::SeqCst));
    // Nothing is tried while changes are held; reads go on.
    room.hold();
    for _ in 0..9 {
        assert!(change().unwrap_err().is_for_now());
    }
    let mut bytes = vec![0; 512];
    BlockDevice::read(&room, &[Buffer::new(&mut bytes)], 0).unwrap();
    assert_eq!(bytes[0], 1);
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    room.tell_arrivals(Arc::new(move || tell.store(true, Ordering::SeqCst)));
    room.give_up();
    assert!(told.load(Ordering::SeqCst));
    // There is still no room, twice, and the guest is told of it.
    for _ in 0..2 {
        assert!(!change().unwrap_err().is_for_now());
    }
    change().unwrap();
}
