//! A disk with two sources, of which one has what a guest wrote there and the other one all that was before.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use block::copy::Steering;
use block::on_demand::{About, Policy, Pull};
use block::{Access, BlockDevice, Buffer, Content, RawImage};
use migration::PullSecret;
use migration::disk_modes::DiskPull;
use migration::pull::server::Options;
use migration::pull::{PullServer, PullSource, PulledVolume};
use migration::source_loss::OnSourceLoss;
use migration::transport::memory::{MemoryConnect, MemoryListen, network};
use migration::vm::VmResult;

use super::*;

const BLOCKS: u64 = 8;
const SIZE: u64 = BLOCKS * BLOCK;
/// Those that the newer source has.
const NEWER: [u64; 2] = [2, 5];
const LONG: Duration = Duration::from_secs(20);

/// A source that counts what it gives.
struct Store {
    byte: u8,
    has: Vec<u64>,
    given: Mutex<BTreeMap<u64, u32>>,
    released: AtomicBool,
}

impl Store {
    fn of(byte: u8, has: impl IntoIterator<Item = u64>) -> Arc<Self> {
        Arc::new(Self {
            byte,
            has: has.into_iter().collect(),
            given: Mutex::default(),
            released: AtomicBool::new(false),
        })
    }

    fn given(&self) -> BTreeMap<u64, u32> {
        self.given.lock().unwrap().clone()
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

impl PullSource for Store {
    fn volume(&self) -> PulledVolume {
        PulledVolume {
            id: "data".into(),
            size: SIZE,
            unit: BLOCK as u32,
        }
    }

    fn holds(&self, unit: u64) -> bool {
        self.has.contains(&unit)
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        Ok(vec![range])
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        *self
            .given
            .lock()
            .unwrap()
            .entry(offset / BLOCK)
            .or_default() += 1;
        into.fill(self.byte);
        Ok(())
    }

    fn release(&self) -> VmResult<()> {
        self.released.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_released(&self) -> bool {
        Self::is_released(self)
    }
}

/// What is served by a store, once it is there.
struct Server {
    server: Arc<PullServer>,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    fn start(store: &Arc<Store>, listen: MemoryListen) -> Self {
        let options = Options {
            linger: Duration::ZERO,
            ..Options::default()
        };
        let (id, secret) = (MigrationId([store.byte; 16]), PullSecret([store.byte; 16]));
        let server = Arc::new(PullServer::new(vec![store.clone()], id, secret, options));
        let serves = server.clone();
        let thread = std::thread::spawn(move || drop(serves.serve(&listen)));
        Self { server, thread }
    }

    fn end(self) {
        self.server.stop();
        self.thread.join().unwrap();
    }
}

fn file(path: &Path, len: u64) -> Arc<dyn BlockDevice> {
    if !path.exists() {
        File::create(path).unwrap().set_len(len).unwrap();
    }
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Container).unwrap())
}

fn map(path: &Path, size: u64) -> PresenceMap {
    let storage = file(path, PresenceMap::length(size));
    if let Ok(map) = PresenceMap::open(storage.clone(), size) {
        return map;
    }
    let all = Allocation::none(size);
    all.add(&(0..size));
    let about = About {
        disk: size,
        id: [7; 16],
        note: Vec::new(),
    };
    PresenceMap::create(storage, about, &all).unwrap()
}

/// A disk, as it comes up with what lies in `dir`.
struct Disk {
    chain: Arc<Chain>,
    layer: Arc<OnDemand>,
}

impl Disk {
    fn of(dir: &Path, newer: MemoryConnect, older: MemoryConnect) -> Self {
        let told_of = |byte: u8| Behind {
            at: byte.to_string(),
            id: MigrationId([byte; 16]).to_string(),
            secret: PullSecret([byte; 16]),
            disk: "data".into(),
        };
        let first = told_of(2);
        let by = ServedBy {
            on_source_loss: OnSourceLoss::default(),
            format: "raw".into(),
            served_at: first.at,
            migration: first.id,
            secret: first.secret,
            disk: first.disk,
            pull: DiskPull::Background,
            behind: vec![told_of(1)],
        };
        let present = map(&dir.join("map"), SIZE);
        let here = Here::as_in(present.present());
        let mut connects = [newer, older].into_iter();
        let mut towards = |_: &str| Ok(Box::new(connects.next().unwrap()) as Box<dyn Connect>);
        let lacks = vec![map(&dir.join("lacks"), SIZE + BLOCK)];
        let chain = Chain::new(&by, (SIZE, lacks), &here, &mut towards, |error| error);
        let (chain, gate) = chain.unwrap();
        let chain = Arc::new(chain);
        let policy = Policy {
            pull: Pull::Off,
            ..Policy::default()
        };
        let steering = Arc::new(Steering::new(None, Duration::ZERO));
        let image = file(&dir.join("image"), SIZE);
        let layer = OnDemand::new(image, present, chain.clone(), policy, steering, || {});
        let layer = Arc::new(layer.unwrap());
        here.is(&layer);
        gate.open();
        Self { chain, layer }
    }

    /// Reads a block as a guest does, which is tried again until it comes.
    fn reads(&self, block: u64) -> u8 {
        let mut bytes = vec![0; BLOCK as usize];
        until("the block comes", || {
            let buffers = [Buffer::new(&mut bytes)];
            self.layer.read(&buffers, block * BLOCK).is_ok()
        });
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block}");
        bytes[0]
    }

    fn finishes(&self) {
        self.chain.finish_needless(&self.layer, LONG).unwrap();
    }
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn older() -> Arc<Store> {
    Store::of(1, 0..BLOCKS)
}

fn newer() -> Arc<Store> {
    Store::of(2, NEWER)
}

#[test]
fn each_block_comes_once_and_from_the_first_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let ((to_newer, at_newer), (to_older, at_older)) = (network(&[]), network(&[]));
    let (newer, older) = (newer(), older());
    let second = Server::start(&older, at_older);
    let disk = Disk::of(dir.path(), to_newer, to_older);
    disk.layer.set_pull(Pull::Background);
    // Nobody knows yet what the newer one has.
    disk.chain.learn();
    assert!(disk.chain.needless().is_empty());
    assert_eq!(disk.chain.missing().len(), 1, "all may be there");
    let first = Server::start(&newer, at_newer);
    until("the disk is whole", || disk.layer.wait_whole(LONG));
    for block in 0..BLOCKS {
        let expected = if NEWER.contains(&block) { 2 } else { 1 };
        assert_eq!(disk.reads(block), expected, "block {block}");
    }
    assert_eq!(newer.given(), NEWER.map(|block| (block, 1)).into());
    let rest = (0..BLOCKS).filter(|block| !NEWER.contains(block));
    assert_eq!(older.given(), rest.map(|block| (block, 1)).collect());
    assert!(!newer.is_released() && !older.is_released());
    disk.finishes();
    assert!(newer.is_released() && older.is_released());
    assert_eq!(disk.chain.needed(), []);
    first.end();
    second.end();
}

#[test]
fn one_that_is_needed_no_more_is_released_and_never_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let ((to_newer, at_newer), (to_older, at_older)) = (network(&[]), network(&[]));
    let (newer, older) = (newer(), older());
    let first = Server::start(&newer, at_newer);
    let second = Server::start(&older, at_older);
    let disk = Disk::of(dir.path(), to_newer, to_older);
    assert_eq!(disk.reads(NEWER[0]), 2);
    disk.finishes();
    assert!(!newer.is_released(), "a block of it is missing");
    assert_eq!(disk.reads(NEWER[1]), 2);
    disk.finishes();
    assert!(newer.is_released() && !older.is_released());
    // Whoever moves on tells of the other one alone.
    let needed = disk.chain.needed();
    assert_eq!(needed.len(), 1);
    assert_eq!(needed[0].at, "1");
    first.end();
    second.end();
    drop(disk);

    // It comes up again where the first one is nowhere.
    let ((to_nobody, _nobody), (to_older, at_older)) = (network(&[]), network(&[]));
    let second = Server::start(&older, at_older);
    let disk = Disk::of(dir.path(), to_nobody, to_older);
    disk.layer.set_pull(Pull::Background);
    until("the disk is whole", || disk.layer.wait_whole(LONG));
    for block in NEWER {
        assert_eq!(disk.reads(block), 2);
    }
    disk.layer.finish().unwrap();
    // Only one of them hears it.
    let _ = disk.chain.finish(Duration::from_millis(50));
    until("the other one is released", || older.is_released());
    assert_eq!(newer.given(), NEWER.map(|block| (block, 1)).into());
    second.end();
}

#[test]
fn what_one_has_comes_while_the_other_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let ((to_newer, at_newer), (to_older, at_older)) = (network(&[]), network(&[]));
    let (newer, older) = (newer(), older());
    let first = Server::start(&newer, at_newer);
    let disk = Disk::of(dir.path(), to_newer, to_older);
    until("it says what it has", || {
        disk.chain.learn();
        disk.chain.is_known(0)
    });
    first.end();
    until("it is away", || disk.chain.is_away(NEWER[0] * BLOCK));
    disk.layer.set_pull(Pull::Background);
    let second = Server::start(&older, at_older);
    until("all that the other one has comes", || {
        let missing = disk.chain.missing();
        missing.len() == 1 && missing[0].at == "2"
    });
    let missing = &disk.chain.missing()[0];
    assert_eq!(missing.bytes, NEWER.len() as u64 * BLOCK);
    assert!(missing.lost.is_some());
    disk.finishes();
    assert!(older.is_released() && !newer.is_released());
    second.end();
}
