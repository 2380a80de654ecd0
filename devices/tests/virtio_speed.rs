//! How many requests a second a disk takes, for whoever changes what they pass through:
//! `cargo test --release -p devices --test virtio_speed -- --ignored --nocapture`, in turn with what was before.
//!
//! Of storage (`requests_a_second_of_storage`) the ways in which it can be used are measured in turn; the file lies in the
//! folder `SPEED_DIR`, or in that of the build.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{Access, Backend, BlockDevice, Content, RawImage, Uring};
use common::{BUFFERS, Driver, Segment, readable, writable};
use devices::virtio::{Block, BlockConfig};

/// How long each figure is measured.
const EACH: Duration = Duration::from_secs(2);
/// How long each is measured in a round, of storage.
const ROUND: Duration = Duration::from_millis(700);
const ROUNDS: usize = 5;
/// Blocks of 4 KiB.
const BLOCKS: u64 = 128 << 10;

/// Requests in flight, each of which has its own descriptor and memory.
struct Load<'d> {
    driver: &'d mut Driver,
    request: u32,
    blocks: u64,
    random: u64,
}

/// What was measured of one kind of request.
struct Figure {
    rate: f64,
    p99: Duration,
}

impl Load<'_> {
    fn offer(&mut self, slot: u16) {
        // Knuth's MMIX generator.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let block = (self.random >> 33) % self.blocks;
        let header = BUFFERS + u64::from(slot) * 0x2000;
        self.driver.put(header, &self.request.to_le_bytes());
        self.driver.put(header + 8, &(block * 8).to_le_bytes());
        let data = match self.request {
            disk::T_IN => writable(header + 0x1000, 4096),
            _ => readable(header + 0x1000, 4096),
        };
        let segments: [Segment; 3] = [readable(header, 16), data, writable(header + 16, 1)];
        self.driver.offer_as(0, slot, &segments);
    }

    /// Keeps `depth` requests in flight for `time`.
    fn measure(mut self, depth: u16, time: Duration) -> Figure {
        let began = Instant::now();
        let mut since = vec![began; usize::from(depth)];
        let mut took = Vec::with_capacity(1 << 20);
        for slot in 0..depth {
            self.offer(slot);
        }
        self.driver.notify(0);
        let mut left = depth;
        while left > 0 {
            let mut offered = false;
            while let Some((slot, _)) = self.driver.poll(0) {
                let now = Instant::now();
                took.push(now - since[usize::from(slot)]);
                if now - began < time {
                    since[usize::from(slot)] = now;
                    self.offer(slot);
                    offered = true;
                } else {
                    left -= 1;
                }
            }
            if offered {
                self.driver.notify(0);
            }
            std::hint::spin_loop();
        }
        let rate = took.len() as f64 / began.elapsed().as_secs_f64();
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        Figure { rate, p99 }
    }
}

fn driver(backend: Arc<dyn Backend>) -> Driver {
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues: 1,
    };
    let mut driver = Driver::new(Box::new(Block::new(backend, config)));
    driver.start(0);
    driver
}

#[test]
#[ignore = "it measures, and says nothing about right or wrong"]
fn requests_a_second() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![1; 256 * 4096]).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let mut driver = driver(Block::backend_over(Arc::new(image)).unwrap());
    for (name, request) in [("read", disk::T_IN), ("write", disk::T_OUT)] {
        for depth in [1, 32] {
            let load = Load {
                driver: &mut driver,
                request,
                blocks: 256,
                random: 1,
            };
            let Figure { rate, p99 } = load.measure(depth, EACH);
            println!(
                "{name} depth {depth}: {rate:.0}/s, p99 {} us",
                p99.as_micros()
            );
        }
    }
}

/// A way to use storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cached,
    /// Threads past the page cache, as who waits for its turn reads an image.
    Threads,
    Ring,
}

fn backend(path: &Path, way: Way) -> Option<Arc<dyn Backend>> {
    let open = || RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap();
    let threads = |image| Block::backend_over(Arc::new(image) as Arc<dyn BlockDevice>).unwrap();
    match way {
        Way::Cached => Some(threads(open())),
        Way::Threads => Some(threads(
            RawImage::open_beside_owner(path, Access::ReadWrite).unwrap(),
        )),
        Way::Ring => {
            let ring = Block::ring_of(&Arc::new(open())).unwrap()?;
            Some(Arc::new(Uring::new(ring)))
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "it measures, and says nothing about right or wrong"]
fn requests_a_second_of_storage() {
    let within =
        std::env::var_os("SPEED_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let dir = tempfile::tempdir_in(within).unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![1; BLOCKS as usize * 4096]).unwrap();
    let mut ways = Vec::new();
    for way in [Way::Cached, Way::Threads, Way::Ring] {
        match backend(&path, way) {
            Some(backend) => ways.push((way, driver(backend))),
            None => println!("skipped: {way:?}"),
        }
    }
    for (name, request) in [("read", disk::T_IN), ("write", disk::T_OUT)] {
        for depth in [1, 4, 32] {
            let mut figures: Vec<Vec<Figure>> = ways.iter().map(|_| Vec::new()).collect();
            for round in 0..ROUNDS {
                for (figures, (_, driver)) in figures.iter_mut().zip(&mut ways) {
                    let load = Load {
                        driver,
                        request,
                        blocks: BLOCKS,
                        random: round as u64,
                    };
                    figures.push(load.measure(depth, ROUND));
                }
            }
            for ((way, _), figures) in ways.iter().zip(&figures) {
                let rate = median(figures.iter().map(|figure| figure.rate).collect());
                let p99 = figures.iter().map(|figure| figure.p99.as_secs_f64() * 1e6);
                let p99 = median(p99.collect());
                println!("{name} depth {depth} {way:?}: {rate:.0}/s, p99 {p99:.0} us");
            }
        }
    }
}
