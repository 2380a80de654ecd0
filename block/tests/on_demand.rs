//! A disk that lies elsewhere in part: what is asked for comes, once, and what is written here stays.

mod origins;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::on_demand::{Allocation, BLOCK, ImageOrigin, OnLoss, Origin, PresenceMap, Pull, Supply};
use block::{BlockDevice, Buffer, Discarded, Durability, Error, Extent, ExtentKind, ZeroMode};
use origins::{
    Answers, KINDS, Kind, LONG, Scene, about, all, content, made, map_storage, over, when_come,
};
use tempfile::TempDir;

/// Ten blocks, of which 3 and 8 are zeroes, and a part of one.
const SIZE: u64 = 10 * BLOCK + 512;

fn scene(pull: Pull, answers: Answers) -> Scene {
    Scene::new(content(SIZE), Kind::Raw, pull, answers)
}

fn try_read(disk: &dyn BlockDevice, offset: u64, len: usize) -> block::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    disk.read(&[Buffer::new(&mut bytes)], offset)?;
    Ok(bytes)
}

fn try_write(disk: &dyn BlockDevice, offset: u64, len: usize) -> block::Result<()> {
    let mut bytes = vec![0xaa; len];
    disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed)
}

fn assert_waits<T>(made: block::Result<T>) {
    match made {
        Err(error @ Error::Absent { .. }) => assert!(error.is_for_now()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it did not wait"),
    }
}

#[test]
fn what_is_read_comes_once_and_nothing_else() {
    for kind in KINDS {
        let scene = Scene::new(content(SIZE), kind, Pull::Off, Answers::Right);
        let expected = content(SIZE);
        let (at, len) = (BLOCK - 512, 1024);
        for _ in 0..3 {
            let read = scene.read(at, len);
            assert_eq!(read, expected[at as usize..at as usize + len], "{kind:?}");
        }
        // What is zero there is zero here, without a question.
        assert_eq!(
            try_read(&*scene.disk, 3 * BLOCK, 512).unwrap(),
            vec![0; 512]
        );
        assert_eq!(
            scene.origin.given().into_keys().collect::<Vec<_>>(),
            [0, 1],
            "{kind:?}"
        );
        let last = scene.read(10 * BLOCK, 512);
        assert_eq!(last, expected[10 * BLOCK as usize..]);
        scene.origin.assert_each_once();
        assert_eq!(scene.disk.status().missing_bytes, 6 * BLOCK);
        assert_eq!(scene.disk.status().fetched_bytes, 2 * BLOCK + 512);
        assert_eq!(scene.disk.status().demanded_bytes, 2 * BLOCK + 512);
    }
}

#[test]
fn a_discard_of_whole_blocks_fetches_those_at_its_ends_and_frees_the_rest() {
    for kind in KINDS {
        let scene = Scene::new(content(SIZE), kind, Pull::Off, Answers::Right);
        let (start, len) = (6 * BLOCK + 512, 3 * BLOCK);
        assert_eq!(scene.discard(start, len), Discarded::Zero, "{kind:?}");
        let given: Vec<_> = scene.origin.given().into_keys().collect();
        assert_eq!(given, [6, 9], "{kind:?}");
        let mut expected = content(SIZE);
        expected[start as usize..(start + len) as usize].fill(0);
        let (first, end) = (6 * BLOCK as usize, 10 * BLOCK as usize);
        let read = scene.read(6 * BLOCK, end - first);
        assert!(read == expected[first..end], "{kind:?}");
        scene.origin.assert_each_once();
    }
}

#[test]
fn what_covers_a_block_fetches_nothing_of_it() {
    for kind in KINDS {
        let scene = Scene::new(content(SIZE), kind, Pull::Off, Answers::Lost);
        scene.write(0, BLOCK as usize, 1);
        scene.zero(BLOCK, BLOCK);
        assert_eq!(scene.discard(4 * BLOCK, 2 * BLOCK), Discarded::Zero);
        scene.write(10 * BLOCK, 512, 2);
        scene.write(3 * BLOCK + 7, 9, 3);
        for (at, value) in [
            (0, 1),
            (BLOCK, 0),
            (4 * BLOCK, 0),
            (10 * BLOCK, 2),
            (3 * BLOCK + 7, 3),
        ] {
            assert_eq!(
                try_read(&*scene.disk, at, 1).unwrap(),
                [value],
                "{kind:?} {at}"
            );
        }
        // A discard of parts leaves what it does not know.
        assert_eq!(scene.discard(6 * BLOCK + 512, 512), Discarded::Kept);
        assert_eq!(scene.discard(7 * BLOCK - 512, 1024), Discarded::Kept);
        assert!(scene.origin.given().is_empty());
        // Of a write the blocks at its ends are fetched, and not those between.
        scene.origin.answer(Answers::Right);
        scene.write(6 * BLOCK + 512, 3 * BLOCK as usize, 4);
        let given: Vec<_> = scene.origin.given().into_keys().collect();
        assert_eq!(given, [6, 9], "{kind:?}");
        let read = scene.read(6 * BLOCK, 4 * BLOCK as usize);
        let was = content(SIZE);
        let (first, end) = (6 * BLOCK as usize, 10 * BLOCK as usize);
        assert_eq!(read[..512], was[first..first + 512]);
        assert!(
            read[512..512 + 3 * BLOCK as usize]
                .iter()
                .all(|byte| *byte == 4)
        );
        assert_eq!(
            read[512 + 3 * BLOCK as usize..],
            was[first + 512 + 3 * BLOCK as usize..end]
        );
        scene.origin.assert_each_once();
    }
}

#[test]
fn what_was_written_here_is_not_replaced_by_what_comes() {
    let scene = scene(Pull::Off, Answers::Never);
    assert_waits(try_read(&*scene.disk, 0, 512));
    scene.origin.wait_asked(1);
    // What is under way to the origin holds up nobody who needs nothing of it.
    scene.write(0, BLOCK as usize, 9);
    scene.origin.answer(Answers::Right);
    assert_eq!(scene.read(0, BLOCK as usize), vec![9; BLOCK as usize]);
    // The thread that was given it has something else in hand: what it was given has been dropped.
    scene.read(BLOCK, 512);
    scene.read(2 * BLOCK, 512);
    assert_eq!(scene.read(0, BLOCK as usize), vec![9; BLOCK as usize]);
}

#[test]
fn what_is_absent_is_said_to_be() {
    let scene = scene(Pull::Off, Answers::Right);
    scene.read(5 * BLOCK, 512);
    scene.zero(6 * BLOCK, BLOCK);
    let told = scene.disk.extents(512, SIZE - 512, 100).unwrap();
    let kinds: Vec<_> = told
        .iter()
        .map(|extent| (extent.offset, extent.offset + extent.len, extent.kind))
        .collect();
    use ExtentKind::{Absent, Data, Zero};
    assert_eq!(
        kinds,
        [
            (512, 3 * BLOCK, Absent),
            (3 * BLOCK, 4 * BLOCK, Zero),
            (4 * BLOCK, 5 * BLOCK, Absent),
            (5 * BLOCK, 6 * BLOCK, Data),
            (6 * BLOCK, 7 * BLOCK, Zero),
            (7 * BLOCK, 8 * BLOCK, Absent),
            (8 * BLOCK, 9 * BLOCK, Zero),
            (9 * BLOCK, SIZE, Absent),
        ]
    );
    let few = scene.disk.extents(512, SIZE - 512, 2).unwrap();
    assert_eq!(few, told[..2].to_vec() as Vec<Extent>);
    assert!(scene.disk.extents(0, SIZE + 1, 1).is_err());
}

#[test]
fn a_lost_origin_holds_up_what_needs_it_until_it_is_back() {
    let scene = scene(Pull::Background, Answers::Lost);
    assert_waits(try_read(&*scene.disk, 0, 512));
    let deadline = Instant::now() + LONG;
    while !matches!(scene.disk.status().supply, Supply::Lost(_)) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    for _ in 0..10 {
        assert_waits(try_read(&*scene.disk, BLOCK, 512));
        assert_waits(try_write(&*scene.disk, BLOCK, 512));
        try_write(&*scene.disk, 9 * BLOCK, BLOCK as usize).unwrap();
        assert_eq!(try_read(&*scene.disk, 9 * BLOCK, 1).unwrap(), [0xaa]);
        scene.disk.flush().unwrap();
    }
    scene.origin.answer(Answers::Right);
    assert_eq!(scene.read(0, 512), content(SIZE)[..512]);
    assert!(scene.disk.wait_whole(LONG));
    assert_eq!(scene.disk.status().supply, Supply::Comes);
    scene.origin.assert_each_once();
}

#[test]
fn requests_fail_for_a_lost_origin_only_if_that_is_wanted() {
    for answers in [Answers::Lost, Answers::Wrong] {
        let scene = scene(Pull::Off, answers);
        assert_waits(try_read(&*scene.disk, 0, 512));
        let after = LONG * 100;
        scene.disk.set_on_loss(OnLoss::Fail { after });
        assert_waits(try_read(&*scene.disk, 0, 512));
        // The request that waits is told, though nobody asks an origin again that is wrong.
        let after = Duration::from_millis(50);
        scene.disk.set_on_loss(OnLoss::Fail { after });
        let read = scene.when_come(|| try_read(&*scene.disk, 0, 512));
        let error = read.unwrap_err();
        assert!(
            matches!(&error, Error::SourceLost { why, .. } if why.contains("told to")),
            "{error}"
        );
        try_write(&*scene.disk, 0, BLOCK as usize).unwrap();
        scene.origin.answer(Answers::Right);
        if answers == Answers::Wrong {
            // For good: a later answer is not believed.
            assert!(try_read(&*scene.disk, BLOCK, 512).is_err());
            continue;
        }
        // From the moment at which it is back, nothing fails any more.
        let read = scene.when_come(|| try_read(&*scene.disk, BLOCK, 512));
        assert_eq!(read.unwrap(), content(SIZE)[BLOCK as usize..][..512]);
    }
}

#[test]
fn the_background_brings_all_the_rest_and_goes_by_its_steering() {
    let scene = scene(Pull::Off, Answers::Right);
    let steering = scene.disk.steering().clone();
    assert!(steering.pause());
    scene.disk.set_pull(Pull::Background);
    // What is asked for comes meanwhile.
    scene.read(5 * BLOCK, 512);
    assert_eq!(scene.origin.given().len(), 1);
    assert!(steering.resume());
    assert!(scene.disk.wait_whole(LONG));
    scene.origin.assert_each_once();
    assert_eq!(scene.origin.given().len(), 9);
    let progress = steering.progress();
    assert_eq!(
        (progress.done, progress.total),
        (8 * BLOCK + 512, 8 * BLOCK + 512)
    );
    assert_eq!(all(&*scene.disk), content(SIZE));
}

#[test]
fn a_disk_that_is_whole_is_its_image_alone() {
    for kind in KINDS {
        let scene = Scene::new(content(SIZE), kind, Pull::Background, Answers::Right);
        scene.write(BLOCK, BLOCK as usize, 5);
        assert!(scene.disk.wait_whole(LONG));
        assert_eq!(scene.disk.finish().unwrap(), 0);
        let mut expected = content(SIZE);
        expected[BLOCK as usize..2 * BLOCK as usize].fill(5);
        let path = scene.dir.path().join("image");
        let dir = scene.dir;
        drop(scene.disk);
        let image = origins::opened(&path, kind);
        assert_eq!(all(&*image), expected, "{kind:?}");
        let map = origins::opened(&dir.path().join("map"), Kind::Raw);
        assert_eq!(PresenceMap::open(map, SIZE).unwrap().missing(), 0);
    }
}

#[test]
fn what_was_flushed_is_known_after_a_restart_and_is_not_fetched_again() {
    for kind in KINDS {
        let scene = Scene::new(content(SIZE), kind, Pull::Off, Answers::Right);
        scene.write(0, BLOCK as usize, 1);
        // Of a block that came its bit is owed as soon as a part of it is written.
        scene.write(BLOCK, 512, 2);
        assert!(scene.disk.has_unflushed_writes());
        scene.disk.flush().unwrap();
        assert!(!scene.disk.has_unflushed_writes());
        let mut durable = [3; 512];
        let buffers = [Buffer::new(&mut durable)];
        scene
            .when_come(|| scene.disk.write(&buffers, 2 * BLOCK, Durability::Immediate))
            .unwrap();
        let scene = scene.reopened(Pull::Off);
        scene.origin.answer(Answers::Lost);
        for (at, value) in [(0, 1), (BLOCK, 2), (2 * BLOCK, 3)] {
            assert_eq!(
                try_read(&*scene.disk, at, 1).unwrap(),
                [value],
                "{kind:?} {at}"
            );
        }
        let was = content(SIZE);
        let rest = try_read(&*scene.disk, BLOCK + 512, 512).unwrap();
        assert_eq!(rest, was[BLOCK as usize + 512..BLOCK as usize + 1024]);
        assert_waits(try_read(&*scene.disk, 4 * BLOCK, 512));
    }
}

#[test]
fn what_cannot_be_written_here_is_asked_for_again() {
    let dir = TempDir::new().unwrap();
    let origin = origins::TestOrigin::new(content(SIZE), Answers::Right);
    let image = Arc::new(FaultLayer::new(made(
        &dir.path().join("image"),
        SIZE,
        Kind::Raw,
    )));
    let storage = map_storage(&dir.path().join("map"), SIZE);
    let map = PresenceMap::create(storage, about(SIZE), &origin.allocation().unwrap()).unwrap();
    let (disk, told) = over(image.clone(), map, origin.clone(), Pull::Off);
    // Its origin is there.
    let after = Duration::ZERO;
    disk.set_on_loss(OnLoss::Fail { after });
    image.inject(Fault {
        operation: Operation::Write,
        skip: 0,
        times: u64::MAX,
        effect: Effect::Fail(libc::ENOSPC),
    });
    assert_waits(try_read(&*disk, 0, 512));
    let deadline = Instant::now() + LONG;
    while !matches!(disk.status().supply, Supply::NotStored(_)) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // The guest hears of its own writes, and what it does not know of stays absent.
    assert!(try_write(&*disk, 0, BLOCK as usize).is_err());
    assert_waits(try_read(&*disk, 0, 512));
    image.clear();
    let read = when_come(&told, || try_read(&*disk, 0, 512)).unwrap();
    assert_eq!(read, content(SIZE)[..512]);
}

#[test]
fn an_image_is_an_origin_and_its_copy_takes_no_more_room() {
    for kind in KINDS {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        let source = made(&path("source"), SIZE, kind);
        let mut piece = vec![6; 4096];
        for at in [0, BLOCK + 8192, 7 * BLOCK - 4096] {
            let buffers = [Buffer::new(&mut piece)];
            source.write(&buffers, at, Durability::Flushed).unwrap();
        }
        source
            .write_zeroes(8 * BLOCK, BLOCK, ZeroMode::KeepAllocated)
            .unwrap();
        source.flush().unwrap();
        let origin = Arc::new(ImageOrigin::new(source.clone()));
        let allocation = origin.allocation().unwrap();
        let storage = map_storage(&path("map"), SIZE);
        let map = PresenceMap::create(storage, about(SIZE), &allocation).unwrap();
        let target = made(&path("target"), SIZE, kind);
        let (disk, _told) = over(target.clone(), map, origin, Pull::Background);
        assert!(disk.wait_whole(LONG));
        disk.finish().unwrap();
        assert_eq!(all(&*target), all(&*source), "{kind:?}");
        let room = |name: &str| std::fs::metadata(path(name)).unwrap().blocks();
        assert!(room("target") <= room("source"), "{kind:?}");
        assert!(disk.status().fetched_bytes <= 4 * BLOCK);
    }
}

#[test]
fn what_an_image_holds_beforehand_is_here_durably_and_all_else_is_not() {
    let dir = TempDir::new().unwrap();
    let was = content(SIZE);
    let origin = origins::TestOrigin::new(was.clone(), Answers::Right);
    let image = made(&dir.path().join("image"), SIZE, Kind::Raw);
    // It came without a request; of block 2 something came that is old.
    let mut came = was.clone();
    came[2 * BLOCK as usize..][..512].fill(0xee);
    let end = 10 * BLOCK as usize;
    let buffers = [Buffer::new(&mut came[..end])];
    image.write(&buffers, 0, Durability::Flushed).unwrap();
    image.flush().unwrap();
    let storage = map_storage(&dir.path().join("map"), SIZE);
    let none = Allocation::none(SIZE);
    none.add(&(0..SIZE));
    let map = PresenceMap::create(storage.clone(), about(SIZE), &none).unwrap();
    let (disk, told) = over(image.clone(), map, origin.clone(), Pull::Off);
    let missing = [1 << 2 | 1 << 10];
    disk.holds_all_but(&missing).unwrap();
    assert_eq!(disk.status().missing_bytes, 2 * BLOCK);
    drop((disk, told));
    // It was durable.
    let map = PresenceMap::open(storage, SIZE).unwrap();
    let present: Vec<_> = (0..11).map(|block| block != 2 && block != 10).collect();
    assert_eq!(map.present(), present);
    let (disk, told) = over(image, map, origin.clone(), Pull::Off);
    assert_eq!(
        try_read(&*disk, BLOCK, 512).unwrap(),
        was[BLOCK as usize..][..512]
    );
    assert!(when_come(&told, || try_read(&*disk, 0, SIZE as usize)).unwrap() == was);
    assert_eq!(origin.given().into_keys().collect::<Vec<_>>(), [2, 10]);
    // Nothing is missing beyond the words that are told.
    disk.holds_all_but(&[]).unwrap();
    assert!(disk.wait_whole(LONG));
}
