//! The virtio disk, as a driver sees it.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::HashSet;
use std::sync::Arc;

use block::fault::{Effect, Fault, Operation};
use block::{Access, Content, RawImage};
use common::{BUFFERS, Driver, EVENT_IDX, INDIRECT, NEEDS_RESET, readable, wait_until, writable};
use devices::virtio::{Block, BlockConfig};
use disk::{
    IOERR, OK, SECTORS, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_ZERO, UNSUPP, create, device,
    open, range,
};
use tempfile::TempDir;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

fn fresh(queues: u16) -> (TempDir, Arc<block::fault::FaultLayer>, Driver) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    create(&path);
    let disk = open(&path);
    let mut driver = Driver::new(device(disk.clone(), queues));
    driver.start(0);
    (dir, disk, driver)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn what_is_written_is_read_back_in_every_mode_of_the_rings() {
    for without in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let (_dir, _disk, mut driver) = fresh(1);
        driver.start(without);
        let indirect = without & INDIRECT == 0;
        // More requests than the ring has entries, so that every index wraps around.
        for i in 0..400u64 {
            let bytes = pattern(1024, i as u8);
            assert_eq!(driver.disk_write(0, i % 250, &bytes, indirect), OK);
            assert_eq!(driver.disk_read(0, i % 250, 1024, indirect), (OK, bytes));
        }
        assert!(driver.interrupt.count() > 0);
        assert_eq!(driver.ack(), 1);
        assert_eq!(driver.read(0x60), 0);
    }
}

#[test]
fn configuration_tells_size_and_limits() {
    let (_dir, _disk, driver) = fresh(3);
    let sectors = u64::from(driver.read(0x104)) << 32 | u64::from(driver.read(0x100));
    assert_eq!(sectors, SECTORS);
    assert_eq!(driver.read(0x114), 512);
    let mut queues = [0; 2];
    devices::BusDevice::read(&*driver.transport, 0x122, &mut queues);
    assert_eq!(u16::from_le_bytes(queues), 3);
    assert_eq!(driver.rings.len(), 3);
    assert_eq!(driver.read(0x13c), 0, "behind the end");
}

#[test]
fn flush_zero_discard_and_id_are_answered() {
    let (_dir, _disk, mut driver) = fresh(1);
    let ones = vec![1; 4096];
    assert_eq!(driver.disk_write(0, 0, &ones, false), OK);
    assert_eq!(driver.disk_other(0, T_FLUSH, 0, &[]), OK);
    assert_eq!(driver.disk_other(0, T_ZERO, 0, &range(1, 2, 0)), OK);
    assert_eq!(driver.disk_other(0, T_ZERO, 0, &range(4, 1, 1)), OK);
    let (status, bytes) = driver.disk_read(0, 0, 4096, false);
    assert_eq!(status, OK);
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let expected = if matches!(sector, 1 | 2 | 4) { 0 } else { 1 };
        assert!(
            bytes.iter().all(|&byte| byte == expected),
            "sector {sector}"
        );
    }
    assert_eq!(driver.disk_other(0, T_DISCARD, 0, &range(0, 8, 0)), OK);
    let two = [range(0, 1, 0), range(8, 1, 0)].concat();
    assert_eq!(driver.disk_other(0, T_DISCARD, 0, &two), OK);

    driver.put(BUFFERS, &T_GET_ID.to_le_bytes());
    let segments = [
        readable(BUFFERS, 16),
        writable(BUFFERS + 64, 20),
        writable(BUFFERS + 32, 1),
    ];
    assert_eq!(driver.request(0, &segments, true), 21);
    assert_eq!(
        driver.bytes(BUFFERS + 64, 20),
        b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(driver.bytes(BUFFERS + 32, 1), [OK]);
}

#[test]
fn requests_that_cannot_be_done_are_refused_in_their_status() {
    let (_dir, _disk, mut driver) = fresh(1);
    let sector = vec![0; 512];
    assert_eq!(driver.disk_write(0, SECTORS, &sector, false), IOERR);
    assert_eq!(driver.disk_write(0, u64::MAX, &sector, false), IOERR);
    assert_eq!(driver.disk_write(0, SECTORS - 1, &[0; 1024], false), IOERR);
    assert_eq!(driver.disk_write(0, 0, &[0; 100], false), IOERR);
    assert_eq!(driver.disk_read(0, SECTORS, 512, false).0, IOERR);
    assert_eq!(driver.disk_read(0, u64::MAX / 512, 512, false).0, IOERR);
    assert_eq!(driver.disk_read(0, 0, 511, false).0, IOERR);
    assert_eq!(driver.disk_other(0, 0x1234, 0, &[]), UNSUPP);
    let table: [(u32, &[u8], u8); 9] = [
        (T_DISCARD, &[], IOERR),
        (T_DISCARD, &[0; 15], IOERR),
        (T_DISCARD, &range(0, 1, 1), UNSUPP),
        (T_DISCARD, &range(SECTORS, 1, 0), IOERR),
        (T_DISCARD, &range(u64::MAX, u32::MAX, 0), IOERR),
        (T_DISCARD, &[0; 17 * 16], IOERR),
        (T_ZERO, &range(0, 1, 2), UNSUPP),
        (T_ZERO, &range(SECTORS - 1, 2, 0), IOERR),
        (T_ZERO, &range(0, u32::MAX, 1), IOERR),
    ];
    for (request, payload, status) in table {
        assert_eq!(
            driver.disk_other(0, request, 0, payload),
            status,
            "{request} {payload:?}"
        );
    }
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    assert_eq!(driver.disk_write(0, 0, &sector, false), OK);
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_change() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    create(&path);
    let image = RawImage::open(&path, Access::ReadOnly, Content::Raw).unwrap();
    let config = BlockConfig {
        serial: "x".repeat(30),
        queues: 0,
    };
    let mut driver = Driver::new(Box::new(Block::over(Arc::new(image), config).unwrap()));
    driver.start(0);
    assert_ne!(driver.features & (1 << 5), 0);
    assert_eq!(driver.rings.len(), 1);
    assert_eq!(driver.disk_write(0, 0, &[0; 512], false), IOERR);
    assert_eq!(driver.disk_other(0, T_ZERO, 0, &range(0, 1, 0)), IOERR);
    assert_eq!(driver.disk_other(0, T_FLUSH, 0, &[]), OK);
    assert_eq!(driver.disk_read(0, 0, 512, false), (OK, vec![0; 512]));
}

#[test]
fn failures_of_the_disk_reach_the_driver_as_errors() {
    let (_dir, disk, mut driver) = fresh(1);
    for operation in [
        Operation::Write,
        Operation::Read,
        Operation::Flush,
        Operation::WriteZeroes,
    ] {
        disk.inject(Fault {
            operation,
            skip: 0,
            times: 1,
            effect: Effect::Fail(5),
        });
    }
    assert_eq!(driver.disk_write(0, 0, &[1; 512], false), IOERR);
    assert_eq!(driver.disk_read(0, 0, 512, false).0, IOERR);
    assert_eq!(driver.disk_other(0, T_FLUSH, 0, &[]), IOERR);
    assert_eq!(driver.disk_other(0, T_ZERO, 0, &range(0, 1, 0)), IOERR);
    assert_eq!(driver.disk_write(0, 0, &[2; 512], false), OK);
    assert_eq!(driver.disk_read(0, 0, 512, false), (OK, vec![2; 512]));
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    let (_dir, disk, mut driver) = fresh(1);
    let flush_fails = |times| Fault {
        operation: Operation::Flush,
        skip: 0,
        times,
        effect: Effect::Fail(5),
    };
    disk.inject(flush_fails(1));
    assert_eq!(driver.disk_write(0, 0, &[1; 512], false), OK);
    driver.start(1 << 9);
    assert_eq!(driver.disk_write(0, 0, &[1; 512], false), IOERR);
    assert_eq!(driver.disk_write(0, 0, &[1; 512], false), OK);
}

/// Forgets what was written into a region.
fn clean(region: &vm_memory::GuestRegionMmap<AtomicBitmap>) {
    let mapping: &vm_memory::MmapRegion<AtomicBitmap> = region;
    mapping.bitmap().reset();
}

#[test]
fn pages_that_are_read_into_are_marked_dirty() {
    let (_dir, _disk, mut driver) = fresh(1);
    assert_eq!(driver.disk_write(0, 0, &pattern(8192, 3), false), OK);
    for region in driver.ram.iter() {
        clean(region);
    }
    // Across the border of the two regions.
    let border = common::RAM_SIZE as u64 / 2;
    driver.put(BUFFERS + 0x2000, &T_IN.to_le_bytes());
    driver.put(BUFFERS + 0x2008, &0u64.to_le_bytes());
    for region in driver.ram.iter() {
        clean(region);
    }
    let data = border - 4096;
    let segments = [
        readable(BUFFERS + 0x2000, 16),
        writable(data, 8192),
        writable(BUFFERS + 0x3000, 1),
    ];
    driver.request(0, &segments, false);
    assert_eq!(driver.bytes(data, 8192), pattern(8192, 3));
    let dirty: HashSet<u64> = driver
        .ram
        .iter()
        .flat_map(|region| {
            (0..region.len() / 4096)
                .filter(|page| region.bitmap().dirty_at(*page as usize * 4096))
                .map(|page| region.start_addr().0 / 4096 + page)
                .collect::<Vec<_>>()
        })
        .collect();
    let used = driver.rings[0].used() / 4096;
    for page in [data / 4096, border / 4096, (BUFFERS + 0x3000) / 4096, used] {
        assert!(dirty.contains(&page), "page {page:#x} of {dirty:x?}");
    }
    assert!(!dirty.contains(&(border / 4096 + 1)));
}

#[test]
fn queues_work_side_by_side() {
    let (_dir, disk, mut driver) = fresh(2);
    disk.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Hang,
    });
    driver.put(BUFFERS + 0x8000, &T_FLUSH.to_le_bytes());
    let flush = [
        readable(BUFFERS + 0x8000, 16),
        writable(BUFFERS + 0x9000, 1),
    ];
    driver.offer(1, &flush, false);
    driver.notify(1);
    disk.wait_hanging(1);
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
    assert_eq!(driver.disk_read(0, 3, 512, false), (OK, vec![5; 512]));
    assert_eq!(driver.poll(1), None);
    disk.release();
    driver.wait_used(1);
}

/// The thread waits for something that cannot happen yet. Given some time it would show if it did not
/// wait; a slow machine only makes the check weaker.
fn stays_unfinished<T>(thread: &std::thread::JoinHandle<T>) -> bool {
    (0..20).all(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        !thread.is_finished()
    })
}

#[test]
fn pause_waits_for_the_request_in_flight_and_leaves_the_rest_in_the_queue() {
    let (_dir, disk, mut driver) = fresh(1);
    disk.inject(Fault {
        operation: Operation::Write,
        skip: 0,
        times: 1,
        effect: Effect::Hang,
    });
    driver.put(BUFFERS + 0x8000, &T_OUT.to_le_bytes());
    let write = [
        readable(BUFFERS + 0x8000, 16),
        readable(BUFFERS, 512),
        writable(BUFFERS + 0x9000, 1),
    ];
    for _ in 0..3 {
        driver.offer(0, &write, false);
    }
    driver.notify(0);
    disk.wait_hanging(1);
    // A flush before the write is done would be worth nothing, and ends the pause at once here.
    disk.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Fail(5),
    });
    let transport = Arc::clone(&driver.transport);
    let pausing = std::thread::spawn(move || transport.pause());
    let waits = stays_unfinished(&pausing) && driver.poll(0).is_none();
    disk.release();
    assert!(waits);
    assert!(pausing.join().unwrap().is_err());
    let mut done = 0;
    while driver.poll(0).is_some() {
        done += 1;
    }
    assert!((1..=3).contains(&done));
    let state = driver.transport.save().unwrap();
    assert_eq!(state.first.queues[0].next_avail, done);
    assert_eq!(state.first.queues[0].next_used, done);
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    driver.transport.resume().unwrap();
    for _ in done..3 {
        driver.wait_used(0);
    }
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
}

#[test]
fn pause_reports_a_flush_that_fails_and_is_paused_all_the_same() {
    let (_dir, disk, mut driver) = fresh(1);
    disk.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Fail(5),
    });
    let error = driver.transport.pause().unwrap_err();
    assert!(error.to_string().contains("disk.raw"), "{error}");
    assert!(driver.transport.save().is_ok());
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
}

#[test]
fn broken_requests_make_the_device_need_a_reset_and_nothing_worse() {
    let cases: [(&str, Vec<common::Segment>); 6] = [
        ("no status byte", vec![readable(BUFFERS, 16)]),
        ("no header", vec![writable(BUFFERS, 1)]),
        (
            "short header",
            vec![readable(BUFFERS, 15), writable(BUFFERS + 64, 1)],
        ),
        (
            "wrong order",
            vec![writable(BUFFERS + 64, 1), readable(BUFFERS, 16)],
        ),
        (
            "not in memory",
            vec![readable(u64::MAX - 3, 16), writable(BUFFERS + 64, 1)],
        ),
        (
            "half in memory",
            vec![
                readable(common::RAM_SIZE as u64 - 8, 16),
                writable(BUFFERS, 1),
            ],
        ),
    ];
    for (name, segments) in cases {
        let (_dir, _disk, mut driver) = fresh(1);
        let interrupts = driver.interrupt.count();
        driver.offer(0, &segments, false);
        driver.notify(0);
        wait_until(name, || driver.status() & NEEDS_RESET != 0);
        wait_until(name, || driver.interrupt.count() > interrupts);
        assert_eq!(driver.read(0x60) & 2, 2, "{name}");
        driver.start(0);
        assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK, "{name}");
    }
}
