//! A disk request and a packet cost no allocation.
#![allow(unsafe_code)] // Counting allocations takes an allocator.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;
#[path = "common/net.rs"]
mod net;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::tracker::ChangeMap;
use block::{Access, Backend, BlockDevice, Content, RawImage, Uring};
use common::{BUFFERS, Driver, readable, writable};
use devices::virtio::{Block, BlockConfig};
use disk::create;
use net::{MAC, Wire};

thread_local! {
    /// Set for the test's own thread, the driver.
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no thread-locals any more; it is not the driver's.
        if !IS_DRIVER.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both count what the whole process allocates, so that they take turns.
#[test]
fn requests_and_packets_allocate_nothing_once_the_queues_are_warm() {
    disk_requests();
    packets();
}

fn disk_requests() {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    create(&path);
    let image = RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
    let image = Arc::new(image);
    let mut backends = vec![Block::backend_over(image.clone()).unwrap()];
    match Block::ring_of(&image).unwrap() {
        Some(ring) => {
            let map = Arc::new(ChangeMap::new(image.size()));
            backends.push(Arc::new(Uring::tracked(ring, map)));
        }
        None => println!("skipped: no io_uring"),
    }
    for backend in backends {
        disk_requests_by(backend);
    }
}

fn disk_requests_by(backend: Arc<dyn Backend>) {
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues: 1,
    };
    let mut driver = Driver::new(Box::new(Block::new(backend, config)));
    driver.start(0);
    IS_DRIVER.set(true);
    let data = BUFFERS + 0x1_0000;
    for request in [disk::T_IN, disk::T_OUT] {
        driver.put(BUFFERS, &request.to_le_bytes());
        driver.put(BUFFERS + 8, &[0; 8]);
        let piece = |at| match request {
            disk::T_IN => writable(at, 4096),
            _ => readable(at, 4096),
        };
        let segments = [
            readable(BUFFERS, 16),
            piece(data),
            piece(data + 8192),
            writable(BUFFERS + 64, 1),
        ];
        for indirect in [false, true] {
            driver.request(0, &segments, indirect);
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            for _ in 0..1000 {
                driver.request(0, &segments, indirect);
            }
            assert_eq!(driver.bytes(BUFFERS + 64, 1), [disk::OK]);
            assert_eq!(
                ALLOCATIONS.load(Ordering::SeqCst),
                before,
                "{request} {indirect}"
            );
            // Several at once, which threads and rings carry out.
            let several = |driver: &mut Driver| {
                for _ in 0..100 {
                    for slot in 0..8 {
                        driver.offer_as(0, slot, &segments);
                    }
                    driver.notify(0);
                    for _ in 0..8 {
                        driver.wait_used(0);
                    }
                }
            };
            // Warm is who has had as many in flight as there ever are, which is a matter of chance.
            let allocates_nothing = (0..100).any(|_| {
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                several(&mut driver);
                ALLOCATIONS.load(Ordering::SeqCst) == before
            });
            assert!(allocates_nothing, "several: {request} {indirect}");
        }
    }
}

fn packets() {
    let wire = Wire::new(1);
    let (mut driver, _port) = net::driver(&wire, 0);
    IS_DRIVER.set(true);
    let frame = [7; 1500];
    let pass = |driver: &mut Driver, size: usize| {
        // As many as a large packet may take.
        for i in 0..48 {
            driver.offer(0, &[writable(BUFFERS + i * 2048, 2048)], false);
        }
        driver.notify(0);
        wire.send_to(0, MAC, &frame[..size]);
        wire.send_to(0, MAC, &vec![1; 40 * size]);
        driver.wait_used(0);
        let mut used = 1;
        while used < 1 + (12 + 12 + 40 * size).div_ceil(2048) {
            driver.wait_used(0);
            used += 1;
        }
        driver.transmit(1, &frame[..size]);
        wire.receive(0);
    };
    // The ring is never refilled in full: what is available stays until it is filled.
    driver.start(0);
    pass(&mut driver, 1000);
    driver.start(0);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..50 {
        driver.start(0);
        pass(&mut driver, 1000);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), before);
}
