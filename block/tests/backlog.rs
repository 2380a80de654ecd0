//! What is written ahead of whoever carries it away is bounded, and no change is held up for anything else.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::backlog::Backlog;
use block::tracker::{BLOCK, ChangeMap, Generation, Tracker};
use block::{Access, BlockDevice, Buffer, Content, Durability, Error, RawImage, Result, ZeroMode};

const BLOCKS: u64 = 16;

struct Scene {
    _dir: tempfile::TempDir,
    marks: Arc<ChangeMap>,
    backlog: Backlog,
    /// How often whoever waits was told to come again.
    told: Arc<AtomicUsize>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let size = BLOCKS * BLOCK;
        File::create(&path).unwrap().set_len(size).unwrap();
        let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
        let marks = Arc::new(ChangeMap::new(size));
        let tracker = Tracker::new(Arc::new(image), marks.clone());
        let backlog = Backlog::new(Arc::new(tracker), marks.clone());
        let told = Arc::new(AtomicUsize::new(0));
        let counts = told.clone();
        backlog.tell_arrivals(Arc::new(move || {
            counts.fetch_add(1, Ordering::SeqCst);
        }));
        Self {
            _dir: dir,
            marks,
            backlog,
            told,
        }
    }

    fn write(&self, block: u64) -> Result<()> {
        let mut bytes = [1; 512];
        let buffers = [Buffer::new(&mut bytes)];
        self.backlog
            .write(&buffers, block * BLOCK, Durability::Flushed)
    }

    fn told(&self) -> usize {
        self.told.load(Ordering::SeqCst)
    }
}

fn waits(result: Result<()>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Throttled { .. }), "{error}");
    assert!(error.is_for_now());
}

#[test]
fn changes_wait_beyond_the_bound_until_something_is_carried_away() {
    let scene = Scene::new();
    scene.backlog.bound(Some(2 * BLOCK));
    for block in 0..3 {
        scene.write(block).unwrap();
    }
    waits(scene.write(3));
    waits(scene.backlog.discard(4 * BLOCK, BLOCK).map(drop));
    waits(
        scene
            .backlog
            .write_zeroes(4 * BLOCK, BLOCK, ZeroMode::MayUnmap),
    );
    // What is marked already adds nothing; reads and flushes wait for nobody.
    scene.write(0).unwrap();
    scene
        .backlog
        .read(&[Buffer::new(&mut [0; 512])], 0)
        .unwrap();
    scene.backlog.flush().unwrap();
    assert!(scene.backlog.waits_for().is_some());
    // What waits has marked nothing.
    let changed: Vec<_> = scene.marks.changed_since(Generation::FIRST).collect();
    assert_eq!(changed, vec![0..3 * BLOCK]);

    let let_in = scene.backlog.let_in();
    assert_eq!(let_in, 3 * BLOCK);
    scene.marks.begin_generation();
    assert_eq!(scene.told(), 0);
    scene.backlog.carried(let_in);
    assert_eq!(scene.told(), 1);
    assert!(scene.backlog.waits_for().is_none());
    // Also of a block whose mark was taken.
    for block in [0, 3, 4] {
        scene.write(block).unwrap();
    }
    waits(scene.write(5));
}

#[test]
fn a_bound_that_is_left_lets_whoever_waits_go_on() {
    let scene = Scene::new();
    for block in 0..8 {
        scene.write(block).unwrap();
    }
    scene.backlog.bound(Some(0));
    waits(scene.write(9));
    scene.backlog.bound(None);
    assert_eq!(scene.told(), 1);
    scene.write(9).unwrap();
}
