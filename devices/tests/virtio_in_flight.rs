//! Requests of a disk that are in flight together, and those that are parked.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::fault::{Effect, Fault, FaultLayer, Operation};
use block::{Access, Backend, BlockDevice, Content, Job, RawImage, Submitter};
use common::{BUFFERS, Driver, NEEDS_RESET, STATUS, readable, wait_until, writable};
use devices::virtio::{Block, BlockConfig, TransportStateV1, TransportStateV2, pause_within};
use disk::{OK, T_IN, T_OUT, device, open};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const FOREVER: u64 = u64::MAX;

/// Where request `n` has its header, with its status behind it, and its data.
fn place(n: u64) -> (u64, u64) {
    let at = BUFFERS + n * 0x2000;
    (at, at + 0x1000)
}

/// Offers request `n` of queue 0, for the sector of that number; its head.
fn offer(driver: &mut Driver, n: u64, request: u32) -> u16 {
    let (header, data) = place(n);
    driver.put(header, &request.to_le_bytes());
    driver.put(header + 4, &0u32.to_le_bytes());
    driver.put(header + 8, &n.to_le_bytes());
    driver.put(header + 16, &[0xff]);
    let data = match request {
        T_IN => writable(data, 512),
        _ => readable(data, 512),
    };
    let segments = [readable(header, 16), data, writable(header + 16, 1)];
    driver.offer(0, &segments, false)
}

/// A disk whose sector `n` is filled with `n`.
fn image(dir: &TempDir) -> std::path::PathBuf {
    let path = dir.path().join("disk.raw");
    let sectors: Vec<u8> = (0..disk::SECTORS).flat_map(|n| [n as u8; 512]).collect();
    std::fs::write(&path, sectors).unwrap();
    path
}

fn started() -> (TempDir, Arc<FaultLayer>, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&image(&dir));
    let mut driver = Driver::new(device(disk.clone(), 1));
    driver.start(0);
    (dir, disk, driver)
}

fn plan(disk: &FaultLayer, operation: Operation, times: u64, effect: Effect) {
    disk.inject(Fault {
        operation,
        skip: 0,
        times,
        effect,
    });
}

/// Whether request `n`, a read, has brought its sector.
fn has_read(driver: &Driver, n: u64) -> bool {
    let (header, data) = place(n);
    driver.bytes(header + 16, 1) == [OK] && driver.bytes(data, 512) == [n as u8; 512]
}

fn used(driver: &Driver) -> u16 {
    let used = driver.rings[0].used() + 2;
    driver.ram.read_obj(GuestAddress(used)).unwrap()
}

fn pause_briefly(driver: &Driver) -> devices::Result<()> {
    pause_within(&[&driver.transport], Duration::from_millis(50)).remove(0)
}

#[test]
fn a_request_that_hangs_holds_up_neither_those_beside_it_nor_those_that_come_later() {
    let (_dir, disk, mut driver) = started();
    plan(&disk, Operation::Read, 1, Effect::Hang);
    let first = offer(&mut driver, 1, T_IN);
    let second = offer(&mut driver, 2, T_IN);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).0, second);
    assert!(has_read(&driver, 2) && !has_read(&driver, 1));
    for n in 3..40 {
        let head = offer(&mut driver, n, T_IN);
        driver.notify(0);
        assert_eq!(driver.wait_used(0).0, head);
        assert!(has_read(&driver, n));
    }
    assert_eq!(disk.hanging(), 1);
    disk.release();
    assert_eq!(driver.wait_used(0).0, first);
    assert!(has_read(&driver, 1));
}

#[test]
fn requests_that_come_one_after_the_other_hang_at_the_same_time() {
    let (_dir, disk, mut driver) = started();
    plan(&disk, Operation::Read, 4, Effect::Hang);
    for n in 1..=4 {
        offer(&mut driver, n, T_IN);
        driver.notify(0);
        wait_until("it is in flight too", || disk.hanging() == n as usize);
    }
    assert_eq!(used(&driver), 0);
    disk.release();
    for _ in 0..4 {
        driver.wait_used(0);
    }
    assert!((1..=4).all(|n| has_read(&driver, n)));
}

#[test]
fn a_pause_waits_for_what_is_in_flight_until_its_deadline() {
    let (_dir, disk, mut driver) = started();
    plan(&disk, Operation::Write, 2, Effect::Hang);
    for n in 1..=2 {
        driver.put(place(n).1, &[0xa0; 512]);
        offer(&mut driver, n, T_OUT);
    }
    driver.notify(0);
    wait_until("both are in flight", || disk.hanging() == 2);
    assert!(pause_briefly(&driver).is_err());
    assert!(driver.transport.save().is_err(), "requests are in flight");
    assert_eq!(used(&driver), 0);
    disk.release();
    driver.transport.pause().unwrap();
    assert_eq!(used(&driver), 2, "they have ended before the pause has");
    let state = driver.transport.save().unwrap();
    assert_eq!(
        (state.first.queues[0].next_used, state.parked.len()),
        (2, 0)
    );
    driver.transport.resume().unwrap();
    assert!(driver.poll(0).is_some() && driver.poll(0).is_some());
    assert_eq!(driver.disk_write(0, 9, &[5; 512], false), OK);
}

#[test]
fn a_parked_request_is_tried_again_when_something_has_come() {
    let (_dir, disk, mut driver) = started();
    plan(&disk, Operation::Read, FOREVER, Effect::Absent);
    let parked = offer(&mut driver, 1, T_IN);
    let beside = offer(&mut driver, 2, T_OUT);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).0, beside);
    // It comes, but not what is waited for; and what is here goes on.
    disk.arrive();
    assert_eq!(driver.disk_write(0, 3, &[5; 512], false), OK);
    assert!(!has_read(&driver, 1));
    disk.clear();
    disk.arrive();
    assert_eq!(driver.wait_used(0).0, parked);
    assert!(has_read(&driver, 1));
}

/// A disk that lacks what reads 1 and 2 want, and has done write 3; the heads of the first two.
fn parked() -> (TempDir, Arc<FaultLayer>, Driver, Vec<u16>) {
    let (dir, disk, mut driver) = started();
    plan(&disk, Operation::Read, FOREVER, Effect::Absent);
    let heads = (1..=2).map(|n| offer(&mut driver, n, T_IN)).collect();
    let beside = offer(&mut driver, 3, T_OUT);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).0, beside);
    (dir, disk, driver, heads)
}

fn sorted(mut heads: Vec<u16>) -> Vec<u16> {
    heads.sort_unstable();
    heads
}

#[test]
fn a_pause_does_not_wait_for_what_is_parked_and_it_goes_on_afterwards() {
    let (_dir, disk, mut driver, heads) = parked();
    pause_briefly(&driver).unwrap();
    let state = driver.transport.save().unwrap();
    assert_eq!(sorted(state.parked[0].clone()), heads);
    // What comes while the device stands still is not looked at before it goes on.
    disk.clear();
    disk.arrive();
    assert_eq!(driver.transport.save().unwrap(), state);
    driver.transport.resume().unwrap();
    let done = vec![driver.wait_used(0).0, driver.wait_used(0).0];
    assert_eq!(sorted(done), heads);
    assert!(has_read(&driver, 1) && has_read(&driver, 2));
}

#[test]
fn what_is_parked_moves_with_the_device_and_in_no_form_that_would_lose_it() {
    let (dir, _disk, driver, heads) = parked();
    pause_briefly(&driver).unwrap();
    let state = driver.transport.save().unwrap();
    TransportStateV1::try_from(state.clone()).unwrap_err();
    let json = serde_json::to_string(&state).unwrap();
    let loaded: TransportStateV2 = serde_json::from_str(&json).unwrap();
    let mut next = driver.moved_to(device(open(&dir.path().join("disk.raw")), 1));
    drop(driver);
    next.transport.pause().unwrap();
    next.transport.load(loaded).unwrap();
    assert_eq!(next.transport.save().unwrap(), state);
    next.transport.resume().unwrap();
    let done = vec![next.wait_used(0).0, next.wait_used(0).0];
    assert_eq!(sorted(done), heads);
    assert!(has_read(&next, 1) && has_read(&next, 2));
    next.transport.pause().unwrap();
    let after = next.transport.save().unwrap();
    assert!(TransportStateV1::try_from(after).is_ok());
}

#[test]
fn a_reset_and_a_stopped_queue_drop_what_is_parked() {
    for (register, value) in [(STATUS, 0), (0x44, 0)] {
        let (_dir, disk, mut driver, _) = parked();
        driver.write(0x30, 0);
        driver.write(register, value);
        assert_eq!(driver.read(register), 0);
        disk.clear();
        disk.arrive();
        driver.transport.pause().unwrap();
        assert!(driver.transport.save().unwrap().parked.is_empty());
        driver.transport.resume().unwrap();
        assert_eq!(used(&driver), 1);
        driver.start(0);
        assert_eq!(driver.disk_write(0, 9, &[5; 512], false), OK);
        assert_eq!(used(&driver), 1);
        assert!(!has_read(&driver, 1) && !has_read(&driver, 2));
    }
}

#[test]
fn parked_requests_that_no_driver_can_have_made_are_refused() {
    let (_dir, _disk, driver, _) = parked();
    driver.transport.pause().unwrap();
    let good = driver.transport.save().unwrap();
    let size = good.first.queues[0].size;
    let many = vec![0; usize::from(size) + 1];
    for parked in [vec![vec![size]], vec![many], vec![vec![0], vec![0]]] {
        let mut bad = good.clone();
        bad.parked = parked;
        let error = driver.transport.load(bad).unwrap_err();
        assert!(matches!(error, devices::Error::BadState { .. }), "{error}");
        assert_eq!(driver.transport.save().unwrap(), good);
    }
    let mut stopped = good;
    stopped.first.queues[0].ready = false;
    driver.transport.load(stopped).unwrap_err();
}

#[test]
fn a_driver_that_offers_one_request_without_end_needs_a_reset() {
    let (_dir, disk, mut driver) = started();
    plan(&disk, Operation::Read, FOREVER, Effect::Absent);
    offer(&mut driver, 1, T_IN);
    driver.notify(0);
    let ring = driver.rings[0].clone();
    let mut count = 1u16;
    wait_until("the device refuses", || {
        // The same descriptors once more.
        let slot = ring.avail() + 4 + u64::from(count % ring.size) * 2;
        driver.ram.write_obj(0u16, GuestAddress(slot)).unwrap();
        count = count.wrapping_add(1);
        let index = GuestAddress(ring.avail() + 2);
        driver.ram.write_obj(count, index).unwrap();
        driver.notify(0);
        driver.status() & NEEDS_RESET != 0
    });
    assert!(count > ring.size);
    driver.start(0);
    assert_eq!(driver.disk_write(0, 9, &[5; 512], false), OK);
}

/// A backend that only gathers what is submitted.
struct Gathering {
    disk: RawImage,
    jobs: Mutex<Vec<Box<dyn Job>>>,
}

impl Backend for Gathering {
    fn submit(&self, job: Box<dyn Job>, _: Submitter) {
        self.jobs.lock().unwrap().push(job);
    }

    fn has_room(&self) -> bool {
        true
    }

    fn disk(&self) -> &dyn BlockDevice {
        &self.disk
    }
}

fn gathering() -> (TempDir, Arc<Gathering>, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let backend = Arc::new(Gathering {
        disk: RawImage::open(image(&dir), Access::ReadWrite, Content::Raw).unwrap(),
        jobs: Mutex::default(),
    });
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues: 1,
    };
    let mut driver = Driver::new(Box::new(Block::new(backend.clone(), config)));
    driver.start(0);
    (dir, backend, driver)
}

/// Offers so many reads; their heads, when all of them have been submitted.
fn submit(driver: &mut Driver, backend: &Gathering, count: u64) -> Vec<u16> {
    let heads = (1..=count).map(|n| offer(driver, n, T_IN)).collect();
    driver.notify(0);
    let all = || backend.jobs.lock().unwrap().len() == count as usize;
    wait_until("all are submitted", all);
    heads
}

#[test]
fn a_backend_ends_requests_in_any_order_and_on_any_thread() {
    let (_dir, backend, mut driver) = gathering();
    let mut heads = submit(&mut driver, &backend, 30);
    assert!(pause_briefly(&driver).is_err());
    driver.transport.resume().unwrap();
    let jobs = std::mem::take(&mut *backend.jobs.lock().unwrap());
    let ending = std::thread::spawn(move || {
        for job in jobs.into_iter().rev() {
            job.complete(Ok(()));
        }
    });
    heads.reverse();
    for head in heads {
        assert_eq!(driver.wait_used(0), (head, 513));
    }
    ending.join().unwrap();
    driver.transport.pause().unwrap();
}

#[test]
fn the_driver_is_interrupted_for_a_request_that_another_thread_ends() {
    let (_dir, backend, mut driver) = gathering();
    let heads = submit(&mut driver, &backend, 1);
    let before = driver.interrupt.count();
    let job = backend.jobs.lock().unwrap().pop().unwrap();
    std::thread::spawn(move || job.complete(Ok(())))
        .join()
        .unwrap();
    assert_eq!(driver.interrupt.count(), before + 1);
    assert_eq!(driver.wait_used(0).0, heads[0]);
}

#[test]
fn a_request_that_a_backend_loses_is_told_of_and_holds_no_pause() {
    let (_dir, backend, mut driver) = gathering();
    submit(&mut driver, &backend, 2);
    let mut jobs = std::mem::take(&mut *backend.jobs.lock().unwrap());
    drop(jobs.pop());
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    assert!(pause_briefly(&driver).is_err(), "the other is in flight");
    drop(jobs);
    driver.transport.pause().unwrap();
}
