//! A disk whose requests are carried out by threads or by a ring, seen by its driver: it is the same disk, also when one
//! takes the place of the other under load.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "../../block/tests/storage/mod.rs"]
mod storage;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use block::tracker::{ChangeMap, Generation};
use block::{Access, Backend, BlockDevice, Content, RawImage, RingDisk, Uring};
use common::{BUFFERS, Driver, readable, wait_until, writable};
use devices::virtio::{Block, BlockConfig, pause_within};
use disk::{IOERR, OK, SECTORS, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_ZERO, create, range};
use storage::Freezing;
use tempfile::TempDir;

const QUEUES: u16 = 3;
const DEPTH: u16 = 16;

fn open(path: &Path) -> Arc<RawImage> {
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

fn ring(image: &Arc<RawImage>) -> Option<Arc<RingDisk>> {
    let ring = Block::ring_of(image).unwrap();
    if ring.is_none() {
        println!("skipped: no io_uring");
    }
    ring
}

fn driver(backend: Arc<dyn Backend>, queues: u16) -> Driver {
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues,
    };
    let mut driver = Driver::new(Box::new(Block::new(backend, config)));
    driver.start(0);
    driver
}

fn by_threads(image: Arc<RawImage>) -> Arc<dyn Backend> {
    Block::backend_over(image as Arc<dyn BlockDevice>).unwrap()
}

#[test]
fn its_driver_cannot_tell_a_ring_from_threads() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut held = Vec::new();
    for by_ring in [false, true] {
        let path = dir.path().join(format!("{by_ring}.raw"));
        create(&path);
        let image = open(&path);
        let backend: Arc<dyn Backend> = if by_ring {
            let Some(ring) = ring(&image) else { return };
            Arc::new(Uring::new(ring))
        } else {
            by_threads(image)
        };
        // A driver that cannot flush takes every write for durable.
        for without in [0, 1 << 9] {
            let mut driver = driver(backend.clone(), 1);
            driver.start(without);
            for indirect in [false, true] {
                let bytes: Vec<u8> = (0..64 * 512).map(|at| (at / 300) as u8).collect();
                assert_eq!(driver.disk_write(0, 3, &bytes, indirect), OK);
                let read = driver.disk_read(0, 3, bytes.len() as u32, indirect);
                assert!(read == (OK, bytes));
                let outside = driver.disk_write(0, SECTORS - 1, &[1; 1024], indirect);
                assert_eq!(outside, IOERR);
                assert_eq!(driver.disk_read(0, SECTORS, 512, indirect).0, IOERR);
            }
            if without == 0 {
                assert_eq!(driver.disk_other(0, T_FLUSH, 0, &[]), OK);
                assert!(!driver.transport.has_unflushed_writes());
            }
            // Several ranges, one after the other.
            let ranges = [range(8, 8, 0), range(20, 1, 0)].concat();
            assert_eq!(driver.disk_other(0, T_ZERO, 0, &ranges), OK);
            let ranges = [range(32, 8, 0), range(48, 8, 0)].concat();
            assert_eq!(driver.disk_other(0, T_DISCARD, 0, &ranges), OK);
            assert_eq!(driver.disk_read(0, 8, 4096, false), (OK, vec![0; 4096]));
        }
        held.push(std::fs::read(&path).unwrap());
    }
    assert!(held[0] == held[1]);
}

/// What a sector holds that was written for the `count`th time.
fn content(sector: u64, count: u64) -> Vec<u8> {
    [sector, count].map(u64::to_le_bytes).concat().repeat(32)
}

/// The driver of one queue, which keeps requests in flight, each for a sector of its own.
struct Load {
    driver: Driver,
    queue: u16,
    counts: Vec<u64>,
    in_flight: Vec<Option<u32>>,
    done: usize,
}

impl Load {
    fn new(driver: &Driver, queue: u16) -> Self {
        Self {
            driver: Driver {
                ram: driver.ram.clone(),
                transport: driver.transport.clone(),
                interrupt: driver.interrupt.clone(),
                features: driver.features,
                rings: driver.rings.clone(),
            },
            queue,
            counts: vec![0; usize::from(DEPTH)],
            in_flight: vec![None; usize::from(DEPTH)],
            done: 0,
        }
    }

    fn sector(&self, slot: u16) -> u64 {
        u64::from(self.queue * DEPTH + slot)
    }

    fn begin(&mut self, slot: u16) {
        let request = [T_OUT, T_IN, T_FLUSH, T_OUT, T_IN][(self.done + usize::from(slot)) % 5];
        let sector = self.sector(slot);
        let at = BUFFERS + sector * 0x1000;
        self.driver.put(at, &request.to_le_bytes());
        self.driver.put(at + 8, &sector.to_le_bytes());
        self.driver.put(at + 16, &[0xff]);
        let (header, status) = (readable(at, 16), writable(at + 16, 1));
        let segments = match request {
            T_OUT => {
                let count = &mut self.counts[usize::from(slot)];
                *count += 1;
                self.driver.put(at + 512, &content(sector, *count));
                vec![header, readable(at + 512, 512), status]
            }
            T_IN => vec![header, writable(at + 1024, 512), status],
            _ => vec![header, status],
        };
        self.driver
            .offer_as(usize::from(self.queue), slot, &segments);
        self.in_flight[usize::from(slot)] = Some(request);
    }

    fn end(&mut self, slot: u16) {
        let request = self.in_flight[usize::from(slot)].take().expect("in flight");
        let sector = self.sector(slot);
        let at = BUFFERS + sector * 0x1000;
        assert_eq!(self.driver.bytes(at + 16, 1), [OK]);
        let count = self.counts[usize::from(slot)];
        if request == T_IN && count > 0 {
            let found = self.driver.bytes(at + 1024, 512);
            assert!(found == content(sector, count), "sector {sector}");
        }
        self.done += 1;
    }

    fn run(&mut self, goes_on: &AtomicBool, done: &AtomicUsize) {
        loop {
            if goes_on.load(Ordering::SeqCst) {
                for slot in 0..DEPTH {
                    if self.in_flight[usize::from(slot)].is_none() {
                        self.begin(slot);
                    }
                }
                self.driver.notify(usize::from(self.queue));
            } else if self.in_flight.iter().all(Option::is_none) {
                return;
            }
            let (slot, _) = self.driver.wait_used(usize::from(self.queue));
            self.end(slot);
            done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn threads_and_a_ring_take_each_others_place_under_load_and_nothing_is_lost() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    create(&path);
    let image = open(&path);
    let Some(ring) = ring(&image) else { return };
    let driver = driver(Arc::new(Uring::new(ring.clone())), QUEUES);
    let map = Arc::new(ChangeMap::new(image.size()));
    let (goes_on, done) = (AtomicBool::new(true), AtomicUsize::new(0));
    let mut loads: Vec<Load> = (0..QUEUES).map(|queue| Load::new(&driver, queue)).collect();
    std::thread::scope(|scope| {
        for load in &mut loads {
            let (goes_on, done) = (&goes_on, &done);
            scope.spawn(move || load.run(goes_on, done));
        }
        for round in 0..150 {
            let next: Arc<dyn Backend> = match round % 3 {
                0 => by_threads(image.clone()),
                1 => Arc::new(Uring::tracked(ring.clone(), map.clone())),
                _ => Arc::new(Uring::new(ring.clone())),
            };
            let before = done.load(Ordering::SeqCst);
            let patience = Duration::from_secs(60);
            driver.transport.pivot(next, patience).unwrap();
            wait_until("requests end", || done.load(Ordering::SeqCst) > before + 20);
            if round % 10 == 0 {
                driver.transport.pause().unwrap();
                assert!(!driver.transport.has_unflushed_writes());
                driver.transport.save().unwrap();
                driver.transport.resume().unwrap();
            }
        }
        goes_on.store(false, Ordering::SeqCst);
    });
    let held = std::fs::read(&path).unwrap();
    for load in &loads {
        for (slot, count) in (0..DEPTH).zip(&load.counts) {
            let sector = load.sector(slot);
            let at = sector as usize * 512;
            assert!(
                held[at..at + 512] == content(sector, *count),
                "sector {sector}"
            );
        }
    }
    assert!(map.changed_since(Generation::FIRST).next().is_some());
}

#[test]
fn a_pause_waits_for_what_the_ring_has_until_its_deadline() {
    let Some(storage) = Freezing::new() else {
        return;
    };
    let path = storage.disk(SECTORS * 512);
    let image = open(&path);
    let Some(ring) = ring(&image) else { return };
    let mut driver = driver(Arc::new(Uring::new(ring)), 1);
    storage.freeze();
    for n in 0..4_u64 {
        let at = BUFFERS + n * 0x2000;
        driver.put(at, &T_OUT.to_le_bytes());
        driver.put(at + 8, &(n * 8).to_le_bytes());
        driver.put(at + 0x1000, &[n as u8 + 1; 4096]);
        let segments = [
            readable(at, 16),
            readable(at + 0x1000, 4096),
            writable(at + 16, 1),
        ];
        driver.offer_as(0, n as u16, &segments);
    }
    // When it has ended, those before it are in flight.
    let at = BUFFERS + 4 * 0x2000;
    driver.put(at, &T_IN.to_le_bytes());
    driver.put(at + 8, &64_u64.to_le_bytes());
    let segments = [
        readable(at, 16),
        writable(at + 0x1000, 4096),
        writable(at + 16, 1),
    ];
    driver.offer_as(0, 4, &segments);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).0, 4);
    let paused = pause_within(&[&driver.transport], Duration::from_millis(50)).remove(0);
    assert!(paused.is_err());
    assert!(driver.transport.save().is_err(), "requests are in flight");
    assert!(driver.poll(0).is_none());
    storage.thaw();
    driver.transport.pause().unwrap();
    for _ in 0..4 {
        assert!(
            driver.poll(0).is_some(),
            "they have ended before the pause has"
        );
    }
    let held = std::fs::read(&path).unwrap();
    assert!((0..4).all(|n| held[n * 4096..(n + 1) * 4096] == [n as u8 + 1; 4096]));
    driver.transport.resume().unwrap();
    // A device that goes while a request hangs.
    storage.freeze();
    driver.offer_as(
        0,
        9,
        &[
            readable(BUFFERS, 16),
            readable(BUFFERS + 0x1000, 4096),
            writable(BUFFERS + 16, 1),
        ],
    );
    driver.notify(0);
    let (ram, dropping) = (
        driver.ram.clone(),
        std::thread::spawn(move || drop((driver, image))),
    );
    wait_until("the device is gone", || dropping.is_finished());
    storage.thaw();
    drop(ram);
}
