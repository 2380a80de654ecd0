//! Disks that lie elsewhere in part: an origin that counts, holds back and fails, and what is done with a layer over it.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use block::copy::Steering;
use block::image::qcow2::create::{self, NewImage};
use block::image::qcow2::{BackingRules, Qcow2Image};
use block::on_demand::{
    About, Allocation, BLOCK, Class, OnDemand, Origin, OriginError, Policy, PresenceMap, Pull,
};
use block::{
    Access, Arrived, BlockDevice, Buffer, Content, Discarded, Durability, Error, RawImage, ZeroMode,
};
use tempfile::TempDir;

/// Until something has to have happened.
pub const LONG: Duration = Duration::from_secs(20);

/// How an origin answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Rightly.
    Right,
    /// Not at all, until that changes.
    Never,
    /// That it is lost.
    Lost,
    /// That it is wrong.
    Wrong,
}

struct State {
    answers: Answers,
    /// Calls that wait for an answer.
    waiting: usize,
    /// How often each block was given.
    given: BTreeMap<u64, u32>,
    returned: Option<Arrived>,
}

/// An origin of which a test says how it answers.
pub struct TestOrigin {
    content: Vec<u8>,
    state: Mutex<State>,
    changed: Condvar,
}

impl TestOrigin {
    pub fn new(content: Vec<u8>, answers: Answers) -> Arc<Self> {
        Arc::new(Self {
            content,
            state: Mutex::new(State {
                answers,
                waiting: 0,
                given: BTreeMap::new(),
                returned: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Answers so from here on, also what waits; an origin that answers rightly says that it is back.
    pub fn answer(&self, answers: Answers) {
        let mut state = self.state.lock().unwrap();
        state.answers = answers;
        let returned = state.returned.clone();
        drop(state);
        self.changed.notify_all();
        if let (Answers::Right, Some(returned)) = (answers, returned) {
            returned();
        }
    }

    /// Waits until so many calls wait for an answer.
    pub fn wait_asked(&self, calls: usize) {
        let state = self.state.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(state, LONG, |state| state.waiting < calls);
        let late = waited.unwrap().1.timed_out();
        assert!(!late, "nobody asks");
    }

    /// How often each block was given.
    pub fn given(&self) -> BTreeMap<u64, u32> {
        self.state.lock().unwrap().given.clone()
    }

    /// That no block was given twice.
    pub fn assert_each_once(&self) {
        let given = self.given();
        assert!(given.values().all(|times| *times == 1), "{given:?}");
    }
}

impl Origin for TestOrigin {
    fn name(&self) -> String {
        "test".into()
    }

    fn allocation(&self) -> Result<Allocation, OriginError> {
        let allocation = Allocation::none(self.content.len() as u64);
        for (block, bytes) in (0..).zip(self.content.chunks(BLOCK as usize)) {
            if bytes.iter().any(|byte| *byte != 0) {
                allocation.add(&(block * BLOCK..block * BLOCK + 1));
            }
        }
        Ok(allocation)
    }

    fn fetch(&self, offset: u64, into: &mut [u8], _class: Class) -> Result<(), OriginError> {
        assert_eq!(offset % BLOCK, 0);
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        while state.answers == Answers::Never {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting -= 1;
        let (origin, why) = (self.name(), "told to".to_owned());
        match state.answers {
            Answers::Lost => return Err(OriginError::Lost { origin, why }),
            Answers::Wrong => return Err(OriginError::Wrong { origin, why }),
            Answers::Right | Answers::Never => {}
        }
        let end = offset + into.len() as u64;
        for block in offset / BLOCK..end.div_ceil(BLOCK) {
            *state.given.entry(block).or_default() += 1;
        }
        into.copy_from_slice(&self.content[offset as usize..end as usize]);
        Ok(())
    }

    fn tell_return(&self, returned: Arrived) {
        self.state.lock().unwrap().returned = Some(returned);
    }
}

/// In which format an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Qcow2,
}

pub const KINDS: [Kind; 2] = [Kind::Raw, Kind::Qcow2];

/// A new image of zeroes.
pub fn made(path: &Path, size: u64, kind: Kind) -> Arc<dyn BlockDevice> {
    match kind {
        Kind::Raw => File::create(path).unwrap().set_len(size).unwrap(),
        Kind::Qcow2 => {
            let image = NewImage {
                size,
                cluster_bits: 16,
                backing: None,
            };
            create::create(path, &image).unwrap();
        }
    }
    opened(path, kind)
}

/// An image that is there.
pub fn opened(path: &Path, kind: Kind) -> Arc<dyn BlockDevice> {
    match kind {
        Kind::Raw => Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap()),
        Kind::Qcow2 => {
            let rules = BackingRules::default();
            let image = Qcow2Image::open(path, Access::ReadWrite, &rules).unwrap();
            image.begin_use().unwrap();
            Arc::new(image)
        }
    }
}

/// What a map of a test is of.
pub fn about(disk: u64) -> About {
    About {
        disk,
        id: [7; 16],
        note: b"from a test".to_vec(),
    }
}

/// Storage for the map of a disk.
pub fn map_storage(path: &Path, disk: u64) -> Arc<dyn BlockDevice> {
    made(path, PresenceMap::length(disk), Kind::Raw)
}

/// Content that tells blocks and sectors from each other, but for some blocks of zeroes.
pub fn content(size: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size as usize);
    for sector in 0..size / 512 {
        let block = sector * 512 / BLOCK;
        let value = if block % 5 == 3 {
            0
        } else {
            1 + (sector * 7 + block * 13) % 250
        };
        bytes.extend([value as u8; 512]);
    }
    bytes
}

/// A disk in two files, and whom it asks.
pub struct Scene {
    pub dir: TempDir,
    pub kind: Kind,
    pub origin: Arc<TestOrigin>,
    pub disk: Arc<OnDemand>,
    pub told: Receiver<()>,
}

pub fn steering() -> Arc<Steering> {
    Arc::new(Steering::new(None, Duration::ZERO))
}

impl Scene {
    pub fn new(content: Vec<u8>, kind: Kind, pull: Pull, answers: Answers) -> Self {
        let dir = TempDir::new().unwrap();
        let size = content.len() as u64;
        let origin = TestOrigin::new(content, answers);
        let image = made(&dir.path().join("image"), size, kind);
        let map = PresenceMap::create(
            map_storage(&dir.path().join("map"), size),
            about(size),
            &origin.allocation().unwrap(),
        );
        let (disk, told) = over(image, map.unwrap(), origin.clone(), pull);
        Self {
            dir,
            kind,
            origin,
            disk,
            told,
        }
    }

    /// The same disk after its process has ended, with nothing lost but what it knew.
    pub fn reopened(self, pull: Pull) -> Self {
        let Self {
            dir,
            kind,
            origin,
            disk,
            told,
        } = self;
        let size = disk.size();
        drop((disk, told));
        let map = opened(&dir.path().join("map"), Kind::Raw);
        let map = PresenceMap::open(map, size).unwrap();
        assert_eq!(map.about(), &about(size));
        let image = opened(&dir.path().join("image"), kind);
        let (disk, told) = over(image, map, origin.clone(), pull);
        Self {
            dir,
            kind,
            origin,
            disk,
            told,
        }
    }

    /// Makes a request until it does not have to wait any more.
    pub fn when_come<T>(&self, request: impl FnMut() -> block::Result<T>) -> block::Result<T> {
        when_come(&self.told, request)
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        self.when_come(|| self.disk.read(&[Buffer::new(&mut bytes)], offset))
            .unwrap();
        bytes
    }

    pub fn write(&self, offset: u64, len: usize, value: u8) {
        let mut bytes = vec![value; len];
        self.when_come(|| {
            let buffers = [Buffer::new(&mut bytes)];
            self.disk.write(&buffers, offset, Durability::Flushed)
        })
        .unwrap();
    }

    pub fn zero(&self, offset: u64, len: u64) {
        self.when_come(|| self.disk.write_zeroes(offset, len, ZeroMode::MayUnmap))
            .unwrap();
    }

    pub fn discard(&self, offset: u64, len: u64) -> Discarded {
        self.when_come(|| self.disk.discard(offset, len)).unwrap()
    }
}

/// The layer, and what it tells.
pub fn over(
    image: Arc<dyn BlockDevice>,
    map: PresenceMap,
    origin: Arc<dyn Origin>,
    pull: Pull,
) -> (Arc<OnDemand>, Receiver<()>) {
    let policy = Policy {
        pull,
        ..Policy::default()
    };
    let disk = OnDemand::new(image, map, origin, policy, steering(), || {}).unwrap();
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    disk.tell_arrivals(Arc::new(move || {
        // Nobody may be listening any more.
        let _ = tell.lock().unwrap().send(());
    }));
    (Arc::new(disk), told)
}

/// Makes a request until it does not have to wait any more; it is made again when something came.
pub fn when_come<T>(
    told: &Receiver<()>,
    mut request: impl FnMut() -> block::Result<T>,
) -> block::Result<T> {
    let deadline = Instant::now() + LONG;
    loop {
        match request() {
            Err(error) if error.is_for_now() => {
                assert!(matches!(error, Error::Absent { .. }), "{error}");
                let left = deadline.saturating_duration_since(Instant::now());
                told.recv_timeout(left).expect("something comes");
            }
            made => return made,
        }
    }
}

/// All of a disk.
pub fn all(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(&[Buffer::new(&mut bytes)], 0).unwrap();
    bytes
}
