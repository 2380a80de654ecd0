//! What layers cost and how long a pivot keeps a guest waiting, for whoever changes them:
//! `cargo test --release -p devices --test virtio_layers_speed -- --ignored --nocapture --test-threads=1`.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block::tracker::{ChangeMap, Tracker};
use block::{Access, BlockDevice, Content, RawImage};
use common::{BUFFERS, Driver, readable, writable};
use devices::virtio::{Block, BlockConfig};
use rustix::time::{ClockId, clock_gettime};

const SIZE: u64 = 256 << 20;
const DEPTH: u64 = 32;
const PATIENCE: Duration = Duration::from_secs(10);

fn setup(dir: &Path) -> (Arc<dyn BlockDevice>, Driver) {
    let path = dir.join("disk.raw");
    std::fs::write(&path, vec![1; SIZE as usize]).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let image: Arc<dyn BlockDevice> = Arc::new(image);
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues: 1,
    };
    let mut driver = Driver::new(Box::new(Block::over(image.clone(), config).unwrap()));
    driver.start(0);
    (image, driver)
}

/// Places that look random, the same each time (the generator of Numerical Recipes).
struct Places(u64);

impl Places {
    fn next(&mut self) -> u64 {
        let Self(state) = self;
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 20) % (SIZE / 4096) * 8
    }
}

/// Writes 4 KiB at random places, so many at a time.
fn write_batch(driver: &mut Driver, places: &mut Places, mut each: impl FnMut()) {
    for n in 0..DEPTH {
        let header = BUFFERS + n * 0x2000;
        driver.put(header, &disk::T_OUT.to_le_bytes());
        driver.put(header + 8, &places.next().to_le_bytes());
        let data = readable(header + 0x1000, 4096);
        driver.offer(
            0,
            &[readable(header, 16), data, writable(header + 16, 1)],
            false,
        );
    }
    driver.notify(0);
    for _ in 0..DEPTH {
        while driver.poll(0).is_none() {
            std::hint::spin_loop();
        }
        each();
    }
}

/// CPU time of all threads but this one.
fn cpu_of_others() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    seconds(ClockId::ProcessCPUTime) - seconds(ClockId::ThreadCPUTime)
}

/// CPU time of the device for each write, in nanoseconds.
fn cpu_of_a_write(driver: &mut Driver) -> f64 {
    const BATCHES: u64 = 150;
    let mut places = Places(7);
    let before = cpu_of_others();
    for _ in 0..BATCHES {
        write_batch(driver, &mut places, || {});
    }
    (cpu_of_others() - before) * 1e9 / (BATCHES * DEPTH) as f64
}

#[test]
#[ignore = "it measures, and says nothing about right or wrong"]
fn what_tracking_costs_a_write() {
    const PAIRS: usize = 400;
    /// Of Student's distribution with 399 degrees of freedom, for 95 %.
    const T: f64 = 1.966;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, mut driver) = setup(dir.path());
    let map = Arc::new(ChangeMap::new(SIZE));
    let tracker = Tracker::new(image.clone(), map.clone());
    // Twice without the layer: what these two differ by is chance, and where their memory lies.
    let disks: [Arc<dyn BlockDevice>; 3] = [image.clone(), image, Arc::new(tracker)];
    let backends = disks.map(|disk| Block::backend_over(disk).unwrap());
    let mut run = |backend: usize| {
        let backend = backends[backend].clone();
        driver.transport.pivot(backend, PATIENCE).unwrap();
        cpu_of_a_write(&mut driver)
    };
    let mut ratios = [Vec::new(), Vec::new()];
    let mut plain_ns = 0.0;
    for pair in 0..PAIRS {
        map.begin_generation();
        let mut took = [0.0; 3];
        for turn in 0..3 {
            let backend = (pair + turn) % 3;
            took[backend] = run(backend);
        }
        plain_ns += took[0] / PAIRS as f64;
        for (ratios, took_other) in ratios.iter_mut().zip([took[1], took[2]]) {
            ratios.push((took_other / took[0] - 1.0) * 100.0);
        }
    }
    // What the layer adds, alone: that blocks are marked which were in this generation before, by one thread.
    const MARKS: u64 = 1 << 22;
    let (mut places, before) = (Places(7), clock_gettime(ClockId::ThreadCPUTime));
    for _ in 0..MARKS {
        drop(map.begin_change(places.next() * 512, 4096));
    }
    let after = clock_gettime(ClockId::ThreadCPUTime);
    let took =
        (after.tv_sec - before.tv_sec) as f64 * 1e9 + (after.tv_nsec - before.tv_nsec) as f64;
    let mark = took / MARKS as f64;
    let part = mark / plain_ns * 100.0;
    println!("the marks of a change take {mark:.1} ns, which is {part:.2} %");
    println!("a write takes {plain_ns:.0} ns of CPU time");
    for (what, ratios) in ["another disk without it", "tracking"].iter().zip(ratios) {
        let mean = ratios.iter().sum::<f64>() / PAIRS as f64;
        let squares = ratios.iter().map(|r| (r - mean).powi(2));
        let variance = squares.sum::<f64>() / (PAIRS - 1) as f64;
        let half = T * (variance / PAIRS as f64).sqrt();
        println!("{what} adds {mean:.2} % +- {half:.2} % ({PAIRS} pairs)");
    }
}

/// The half and the nine tenths that are less, and the most.
fn told(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{what}: median {:?}, p90 {:?}, max {:?}",
        at(50),
        at(90),
        at(100)
    );
}

#[test]
#[ignore = "it measures, and says nothing about right or wrong"]
fn how_long_a_pivot_keeps_a_guest_waiting() {
    const PIVOTS: usize = 500;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (image, mut driver) = setup(dir.path());
    let transport = driver.transport.clone();
    let began = Instant::now();
    let now = || began.elapsed().as_nanos() as u64;
    let (goes_on, last, longest) = (AtomicBool::new(true), AtomicU64::new(0), AtomicU64::new(0));
    let (mut stood, mut gaps, mut without) = (Vec::new(), Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut places = Places(7);
            while goes_on.load(Ordering::Relaxed) {
                write_batch(&mut driver, &mut places, || {
                    let gap = now() - last.swap(now(), Ordering::Relaxed);
                    longest.fetch_max(gap, Ordering::Relaxed);
                });
            }
        });
        // The longest time without a request that ended, while `act` goes on and a little longer.
        let gap = |act: &mut dyn FnMut()| {
            longest.store(0, Ordering::Relaxed);
            act();
            std::thread::sleep(Duration::from_millis(2));
            Duration::from_nanos(longest.load(Ordering::Relaxed))
        };
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..PIVOTS {
            let backend = Block::backend_over(image.clone()).unwrap();
            without.push(gap(&mut || {}));
            let mut pivot = || stood.push(transport.pivot(backend.clone(), PATIENCE).unwrap());
            gaps.push(gap(&mut pivot));
        }
        goes_on.store(false, Ordering::Relaxed);
    });
    told("the gate was closed", stood);
    told("longest gap between two requests", gaps);
    told("the same in 2 ms without a pivot", without);
}
