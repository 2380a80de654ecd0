//! What a driver may ask of a disk whose storage hangs, and what its pause waits for then.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use common::{BUFFERS, Driver, NEEDS_RESET, STATUS, readable, wait_until, writable};
use devices::BusDevice;
use devices::virtio::pause_within;
use disk::{OK, T_IN};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_READY: u64 = 0x44;
/// Where the reads put their data.
const DATA: u64 = BUFFERS + 0x1000;

/// A started disk whose queue 0 has three reads in flight that hang.
fn hanging() -> (TempDir, Arc<FaultLayer>, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    disk::create(&path);
    std::fs::write(&path, vec![0xa5; 256 * 512]).unwrap();
    let disk = disk::open(&path);
    let mut driver = Driver::new(disk::device(disk.clone(), 2));
    driver.start(0);
    disk.inject(Fault {
        operation: Operation::Read,
        skip: 0,
        times: 3,
        effect: Effect::Hang,
    });
    driver.put(BUFFERS, &T_IN.to_le_bytes());
    driver.put(BUFFERS + 4, &[0; 12]);
    let read = [
        readable(BUFFERS, 16),
        writable(DATA, 512),
        writable(BUFFERS + 64, 1),
    ];
    for _ in 0..3 {
        driver.offer(0, &read, false);
    }
    driver.notify(0);
    wait_until("all of them hang", || disk.hanging() == 3);
    (dir, disk, driver)
}

/// Writes a register on a thread of its own, as a vCPU does.
fn vcpu_writes(driver: &Driver, offset: u64, value: u32) -> JoinHandle<()> {
    let transport = Arc::clone(&driver.transport);
    std::thread::spawn(move || transport.write(offset, &value.to_le_bytes()))
}

/// What a vCPU reads from a register, which must not take as long as the request.
fn vcpu_reads(driver: &Driver, offset: u64) -> u32 {
    let transport = Arc::clone(&driver.transport);
    let read = std::thread::spawn(move || {
        let mut data = [0; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    });
    wait_until("the register is read", || read.is_finished());
    read.join().unwrap()
}

/// A pause that waits for 50 ms, on a thread of its own.
fn short_pause(driver: &Driver) -> JoinHandle<devices::Result<()>> {
    let transport = Arc::clone(&driver.transport);
    std::thread::spawn(move || {
        let patience = Duration::from_millis(50);
        pause_within(&[&transport], patience).remove(0)
    })
}

fn used(driver: &Driver) -> u16 {
    let used = driver.rings[0].used() + 2;
    driver.ram.read_obj(GuestAddress(used)).unwrap()
}

#[test]
fn a_reset_over_storage_that_hangs_leaves_the_vcpu_and_is_done_when_the_request_has_ended() {
    let (_dir, disk, mut driver) = hanging();
    let reset = vcpu_writes(&driver, STATUS, 0);
    wait_until("the vCPU is free again", || reset.is_finished());
    reset.join().unwrap();
    // Neither done nor what was agreed before, also for a driver that does not wait.
    assert_eq!(vcpu_reads(&driver, STATUS), NEEDS_RESET);
    for status in [1, 3, 11, 15, 0] {
        driver.write(STATUS, status);
        assert_eq!(vcpu_reads(&driver, STATUS), NEEDS_RESET);
    }
    assert_eq!(used(&driver), 0);
    disk.release();
    wait_until("the reset is done", || driver.status() == 0);
    // The memory is the driver's again, and nothing is done behind its back.
    let filled = driver.bytes(DATA, 512);
    assert!(filled.iter().all(|byte| *byte == 0xa5));
    let before = used(&driver);
    assert_eq!(before, 3, "those in flight have ended");
    driver.put(DATA, &[0; 512]);
    driver.notify(0);
    driver.start(0);
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
    assert_eq!(driver.bytes(DATA, 512), [0; 512]);
}

#[test]
fn a_queue_is_stopped_when_its_request_has_ended_and_no_register_waits_for_that() {
    let (_dir, disk, mut driver) = hanging();
    driver.write(QUEUE_SEL, 0);
    assert_eq!(vcpu_reads(&driver, QUEUE_READY), 1);
    assert_eq!(vcpu_reads(&driver, QUEUE_NUM_MAX), 256);
    let again = vcpu_writes(&driver, QUEUE_READY, 1);
    wait_until("a queue in use is set up again", || again.is_finished());
    let stop = vcpu_writes(&driver, QUEUE_READY, 0);
    wait_until("the vCPU is free again", || stop.is_finished());
    assert_eq!(vcpu_reads(&driver, QUEUE_READY), 1, "it is still in use");
    disk.release();
    wait_until("the queue is stopped", || driver.read(QUEUE_READY) == 0);
    assert_eq!(used(&driver), 3);
    // The other one goes on, and this one can be used again.
    assert_eq!(driver.disk_write(1, 3, &[5; 512], false), OK);
    driver.start(0);
    assert_eq!(driver.disk_write(0, 3, &[6; 512], false), OK);
}

#[test]
fn a_pause_during_a_reset_has_its_deadline_and_says_what_it_waits_for() {
    let (_dir, disk, mut driver) = hanging();
    driver.write(STATUS, 0);
    let pause = short_pause(&driver);
    wait_until("the pause has had its time", || pause.is_finished());
    let why = pause.join().unwrap().unwrap_err().to_string();
    assert!(why.contains("disk.raw") && why.contains("reset"), "{why}");
    assert!(why.contains("50ms"), "{why}");
    assert!(driver.transport.save().is_err(), "a request is in flight");
    driver.transport.resume().unwrap();
    assert_eq!(driver.status(), NEEDS_RESET);
    disk.release();
    // However soon it comes, the pause sees the reset done.
    driver.transport.pause().unwrap();
    let state = driver.transport.save().unwrap();
    assert_eq!(state.first.status, 0);
    assert!(!state.first.queues[0].ready);
    driver.transport.resume().unwrap();
    assert_eq!(driver.status(), 0);
    driver.start(0);
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
}

#[test]
fn devices_that_hang_are_waited_for_together() {
    let disks: Vec<_> = (0..20).map(|_| hanging()).collect();
    let transports: Vec<_> = disks
        .iter()
        .map(|(_, _, driver)| &*driver.transport)
        .collect();
    let patience = Duration::from_millis(500);
    let began = std::time::Instant::now();
    let paused = pause_within(&transports, patience);
    assert!(paused.iter().all(Result::is_err));
    // One after the other they would have taken twenty times as long.
    assert!(began.elapsed() < 10 * patience);
    for (_, disk, _) in &disks {
        disk.release();
    }
}

#[test]
fn a_flush_that_hangs_does_not_lengthen_the_wait_of_the_next() {
    let (_dir, disk, driver) = hanging();
    disk.release();
    disk.inject(Fault {
        operation: Operation::Flush,
        skip: 0,
        times: 1,
        effect: Effect::Hang,
    });
    let transport = Arc::clone(&driver.transport);
    let running = std::thread::spawn(move || transport.flush());
    disk.wait_hanging(1);
    let pause = short_pause(&driver);
    wait_until("the pause has had its time", || pause.is_finished());
    assert!(!running.is_finished(), "the first flush still hangs");
    let why = pause.join().unwrap().unwrap_err().to_string();
    assert!(why.contains("durable"), "{why}");
    disk.release();
    running.join().unwrap().unwrap();
    driver.transport.pause().unwrap();
}

#[test]
fn a_device_is_dropped_though_its_request_does_not_end() {
    let (_dir, disk, driver) = hanging();
    let ram = driver.ram.clone();
    let dropping = std::thread::spawn(move || drop(driver));
    wait_until("the device is gone", || dropping.is_finished());
    disk.release();
    // What the request needs stays until it has ended.
    wait_until("the request ends in the guest's memory", || {
        let mut byte = [0];
        ram.read_slice(&mut byte, GuestAddress(DATA)).unwrap();
        byte == [0xa5]
    });
}
