//! How many requests a second a disk of the host's memory takes, for whoever changes what they pass through:
//! `cargo test --release -p devices --test virtio_speed -- --ignored --nocapture`, in turn with what was before.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{Access, Content, RawImage};
use common::{BUFFERS, Driver, Segment, readable, writable};
use devices::virtio::{Block, BlockConfig};

/// How long each figure is measured.
const EACH: Duration = Duration::from_secs(2);

/// Has `depth` requests at a time done, again and again; requests a second.
fn measure(driver: &mut Driver, request: u32, depth: u64) -> f64 {
    let offers: Vec<[Segment; 3]> = (0..depth)
        .map(|n| {
            let header = BUFFERS + n * 0x2000;
            driver.put(header, &request.to_le_bytes());
            driver.put(header + 8, &(n * 8).to_le_bytes());
            let data = match request {
                disk::T_IN => writable(header + 0x1000, 4096),
                _ => readable(header + 0x1000, 4096),
            };
            [readable(header, 16), data, writable(header + 16, 1)]
        })
        .collect();
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < EACH {
        for segments in &offers {
            driver.offer(0, segments, false);
        }
        driver.notify(0);
        for _ in 0..depth {
            while driver.poll(0).is_none() {
                std::hint::spin_loop();
            }
        }
        done += depth;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

#[test]
#[ignore = "it measures, and says nothing about right or wrong"]
fn requests_a_second() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![1; 256 * 4096]).unwrap();
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues: 1,
    };
    let device = Block::over(Arc::new(image), config).unwrap();
    let mut driver = Driver::new(Box::new(device));
    driver.start(0);
    for (name, request) in [("read", disk::T_IN), ("write", disk::T_OUT)] {
        for depth in [1, 32] {
            let rate = measure(&mut driver, request, depth);
            println!("{name} depth {depth}: {rate:.0}/s");
        }
    }
}
