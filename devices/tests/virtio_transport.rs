//! The transport's registers, and what a driver gone wild can do with them: nothing.

#[path = "common/mod.rs"]
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::sync::Arc;

use common::{
    BUFFERS, CountedInterrupt, DRIVER_OK, Driver, EVENT_IDX, INDIRECT, NEEDS_RESET, RAM_SIZE,
    RINGS, STATUS, VERSION_1, readable, wait_until, writable,
};
use devices::virtio::{Console, DeviceStateV1, MmioTransport, Rng, TransportStateV2};
use devices::{BusDevice, Error};
use disk::{OK, create, device, open};
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

fn rng() -> Driver {
    Driver::new(Box::new(Rng::new()))
}

#[test]
fn device_identifies_itself() {
    let driver = rng();
    assert_eq!(driver.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.read(4), 2);
    assert_eq!(driver.read(8), 4);
    assert_eq!(driver.read(0xfc), 0);
    assert_eq!(driver.read(0xb0), u32::MAX);
    assert_eq!(driver.offered(), VERSION_1 | EVENT_IDX | INDIRECT);
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
}

#[test]
fn features_are_agreed_on_once_and_only_with_version_1() {
    let driver = rng();
    for (features, agreed) in [
        (VERSION_1, true),
        (VERSION_1 | EVENT_IDX | INDIRECT, true),
        (0, false),
        (EVENT_IDX, false),
        (VERSION_1 | 1, false),
        (VERSION_1 | 1 << 34, false),
        (u64::MAX, false),
    ] {
        driver.write(STATUS, 0);
        driver.write(STATUS, 3);
        driver.accept(features);
        driver.write(STATUS, 11);
        assert_eq!(
            driver.status(),
            if agreed { 11 } else { 3 },
            "{features:#x}"
        );
        // Too late.
        driver.accept(0);
        driver.write(STATUS, 15);
        assert_eq!(driver.status() & DRIVER_OK != 0, agreed, "{features:#x}");
    }
}

#[test]
fn status_takes_nothing_back_and_nothing_that_is_the_devices() {
    let driver = rng();
    driver.write(STATUS, 3);
    driver.write(STATUS, 1);
    assert_eq!(driver.status(), 3);
    driver.write(STATUS, 0xffff_ff00 | NEEDS_RESET);
    assert_eq!(driver.status(), 3);
    driver.write(STATUS, 128);
    assert_eq!(driver.status(), 131);
    driver.write(STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn rings_outside_memory_are_refused() {
    for base in [RAM_SIZE as u64, RAM_SIZE as u64 - 0x100, u64::MAX - 0xffff] {
        let mut driver = rng();
        driver.start(0);
        let mut ring = driver.rings[0].clone();
        ring.base = base & !0xf;
        driver.write(0x30, 0);
        driver.write(0x44, 0);
        driver.set_up(&ring);
        assert_eq!(driver.read(0x44), 0, "{base:#x}");
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
        driver.start(0);
        assert_eq!(driver.status(), 15);
    }
}

#[test]
fn a_queue_in_use_is_not_reconfigured() {
    let mut driver = rng();
    driver.start(0);
    let other = driver.rings[0].base + 0x8_0000;
    driver.write(0x30, 0);
    driver.write(0x80, other as u32);
    driver.write(0x38, 2);
    let buffer = [writable(BUFFERS, 32)];
    assert_eq!(driver.request(0, &buffer, false), 32);
    // A queue that does not exist.
    driver.write(0x30, 7);
    assert_eq!((driver.read(0x34), driver.read(0x44)), (0, 0));
    driver.write(0x44, 1);
    driver.write(0x38, 4);
    driver.write(0x50, 7);
    driver.write(0x50, u32::MAX);
    assert_eq!(driver.status(), 15);
}

#[test]
fn nothing_is_processed_before_driver_ok_and_everything_then() {
    let mut driver = rng();
    driver.start(0);
    let ring = driver.rings[0].clone();
    driver.write(STATUS, 0);
    driver.write(STATUS, 3);
    driver.accept(driver.features);
    driver.write(STATUS, 11);
    driver.set_up(&ring);
    driver.offer(0, &[writable(BUFFERS, 32)], false);
    driver.notify(0);
    // A round trip through the thread's gate shows that it has seen the notification.
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    driver.transport.pause().unwrap();
    driver.transport.resume().unwrap();
    assert_eq!(driver.poll(0), None);
    driver.write(STATUS, 15);
    assert_eq!(driver.wait_used(0).1, 32);
}

#[test]
fn notifier_and_register_both_wake_the_queue() {
    let mut driver = rng();
    driver.start(0);
    assert_eq!(driver.transport.queue_notifiers().len(), 1);
    driver.offer(0, &[writable(BUFFERS, 32)], false);
    driver.transport.queue_notifiers()[0].write(1).unwrap();
    assert_eq!(driver.wait_used(0).1, 32);
    assert_eq!(driver.request(0, &[writable(BUFFERS, 32)], true), 32);
}

#[test]
fn entropy_is_bounded_and_differs() {
    let mut driver = rng();
    driver.start(0);
    assert_eq!(
        driver.request(
            0,
            &[writable(BUFFERS, 1000), writable(BUFFERS + 1000, 24)],
            true
        ),
        1024
    );
    let first = driver.bytes(BUFFERS, 1024);
    assert_eq!(driver.request(0, &[writable(BUFFERS, 1024)], false), 1024);
    assert_ne!(driver.bytes(BUFFERS, 1024), first);
    assert_eq!(
        driver.request(0, &[writable(BUFFERS, 0x10_0000)], false),
        4096
    );
    driver.offer(0, &[readable(BUFFERS, 16)], false);
    driver.notify(0);
    wait_until("refusal", || driver.status() & NEEDS_RESET != 0);
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let mut driver = rng();
    driver.start(EVENT_IDX);
    driver
        .ram
        .write_obj(1u16, GuestAddress(driver.rings[0].avail()))
        .unwrap();
    driver.request(0, &[writable(BUFFERS, 32)], false);
    driver.transport.pause().unwrap();
    assert_eq!(driver.interrupt.count(), 0);
    driver.transport.resume().unwrap();
    driver
        .ram
        .write_obj(0u16, GuestAddress(driver.rings[0].avail()))
        .unwrap();
    driver.request(0, &[writable(BUFFERS, 32)], false);
    wait_until("interrupt", || driver.interrupt.count() == 1);
}

#[test]
fn console_carries_bytes_both_ways_and_keeps_input_for_later() {
    let (sender, receiver) = std::sync::mpsc::channel();
    struct Out(std::sync::mpsc::Sender<Vec<u8>>);
    impl std::io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (console, input) = Console::new(Box::new(Out(sender.clone()))).unwrap();
    let mut driver = Driver::new(Box::new(console));
    assert_eq!(input.enqueue(b"early"), 5);
    driver.start(0);
    driver.put(BUFFERS, b"prompt> ");
    driver.request(1, &[readable(BUFFERS, 3), readable(BUFFERS + 3, 5)], true);
    let mut seen = Vec::new();
    while seen.len() < 8 {
        seen.extend(receiver.recv().unwrap());
    }
    assert_eq!(seen, b"prompt> ");

    assert_eq!(driver.request(0, &[writable(BUFFERS, 2)], false), 2);
    assert_eq!(driver.bytes(BUFFERS, 2), b"ea");
    // Input moves with the guest.
    driver.transport.pause().unwrap();
    let state = driver.transport.save().unwrap();
    let (console, later) = Console::new(Box::new(Out(sender))).unwrap();
    let mut next = driver.moved_to(Box::new(console));
    next.transport.pause().unwrap();
    next.transport.load(state).unwrap();
    next.transport.resume().unwrap();
    assert_eq!(next.request(0, &[writable(BUFFERS, 100)], false), 3);
    assert_eq!(next.bytes(BUFFERS, 3), b"rly");
    // A buffer waits for input, not the other way round.
    next.offer(0, &[writable(BUFFERS, 100)], false);
    next.notify(0);
    next.transport.pause().unwrap();
    next.transport.resume().unwrap();
    assert_eq!(next.poll(0), None);
    assert_eq!(later.enqueue(b"x"), 1);
    assert_eq!(next.wait_used(0).1, 1);
    let flood = vec![b'y'; 1 << 20];
    let (sender, room) = std::sync::mpsc::channel();
    later.on_room(Box::new(move || sender.send(()).unwrap()));
    assert_eq!(later.enqueue(&flood), 64 << 10);
    assert_eq!(later.enqueue(&flood), 0);
    // Asked for again when it is worth while.
    assert_eq!(
        next.request(0, &[writable(BUFFERS, 31 << 10)], false),
        31 << 10
    );
    assert!(room.try_recv().is_err());
    assert_eq!(
        next.request(0, &[writable(BUFFERS, 1 << 10)], false),
        1 << 10
    );
    room.recv().unwrap();
    assert_eq!(later.enqueue(&flood), 32 << 10);
}

#[test]
fn state_is_saved_and_loaded_only_while_paused() {
    let driver = rng();
    assert!(matches!(
        driver.transport.save(),
        Err(Error::NotPaused { .. })
    ));
    driver.transport.pause().unwrap();
    let state = driver.transport.save().unwrap();
    driver.transport.resume().unwrap();
    assert!(matches!(
        driver.transport.load(state),
        Err(Error::NotPaused { .. })
    ));
}

#[test]
fn state_that_does_not_fit_is_refused_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    create(&path);
    let mut driver = Driver::new(device(open(&path), 1));
    driver.start(0);
    assert_eq!(driver.disk_write(0, 0, &[7; 512], false), OK);
    driver.transport.pause().unwrap();
    let good = driver.transport.save().unwrap();
    type Change = fn(&mut TransportStateV2);
    let table: [(&str, Change); 22] = [
        ("device", |s| s.first.device_id = 4),
        ("features", |s| s.first.driver_features |= 1 << 40),
        ("no version 1", |s| s.first.driver_features = 0),
        ("status", |s| s.first.status |= 0x100),
        ("running without features", |s| s.first.status = 7),
        ("interrupt", |s| s.first.interrupt_status = 4),
        ("no queues", |s| s.first.queues.clear()),
        ("more queues", |s| {
            s.first.queues.push(s.first.queues[0].clone());
        }),
        ("max size", |s| s.first.queues[0].max_size = 128),
        ("size", |s| s.first.queues[0].size = 512),
        ("size 0", |s| s.first.queues[0].size = 0),
        ("odd size", |s| s.first.queues[0].size = 3),
        ("table outside", |s| {
            s.first.queues[0].desc_table = RAM_SIZE as u64 - 16;
        }),
        ("table unaligned", |s| s.first.queues[0].desc_table += 1),
        ("ring outside", |s| {
            s.first.queues[0].avail_ring = u64::MAX - 1;
        }),
        ("ring unaligned", |s| s.first.queues[0].avail_ring += 1),
        ("no ring", |s| s.first.queues[0].avail_ring = 0),
        ("used outside", |s| {
            s.first.queues[0].used_ring = RAM_SIZE as u64;
        }),
        ("used unaligned", |s| s.first.queues[0].used_ring += 2),
        ("capacity", |s| change_disk(s, |d| d.capacity_sectors += 1)),
        ("serial", |s| change_disk(s, |d| d.serial.push('x'))),
        ("read-only", |s| change_disk(s, |d| d.read_only = true)),
    ];
    for (name, change) in table {
        let mut bad = good.clone();
        change(&mut bad);
        let error = driver.transport.load(bad).unwrap_err();
        assert!(matches!(error, Error::BadState { .. }), "{name}: {error}");
        assert_eq!(driver.transport.save().unwrap(), good, "{name}");
    }
    driver.transport.load(good).unwrap();
    driver.transport.resume().unwrap();
    assert_eq!(driver.disk_read(0, 0, 512, false), (OK, vec![7; 512]));
}

fn change_disk(
    state: &mut TransportStateV2,
    change: impl FnOnce(&mut devices::virtio::block::BlockStateV1),
) {
    match &mut state.first.device {
        DeviceStateV1::Block(disk) => change(disk),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loaded_ring_index_that_lies_needs_a_reset_and_no_more() {
    let mut driver = rng();
    driver.start(0);
    driver.request(0, &[writable(BUFFERS, 32)], false);
    driver.transport.pause().unwrap();
    let mut state = driver.transport.save().unwrap();
    state.first.queues[0].next_avail = state.first.queues[0].next_avail.wrapping_add(1000);
    driver.transport.load(state).unwrap();
    driver.transport.resume().unwrap();
    wait_until("refusal", || driver.status() & NEEDS_RESET != 0);
    driver.start(0);
    assert_eq!(driver.request(0, &[writable(BUFFERS, 32)], false), 32);
}

#[test]
fn a_pending_interrupt_is_raised_again_after_loading() {
    let mut driver = rng();
    driver.start(0);
    driver.request(0, &[writable(BUFFERS, 32)], false);
    driver.transport.pause().unwrap();
    let state = driver.transport.save().unwrap();
    assert_eq!(state.first.interrupt_status, 1);
    let next = driver.moved_to(Box::new(Rng::new()));
    next.transport.pause().unwrap();
    next.transport.load(state).unwrap();
    next.transport.resume().unwrap();
    assert_eq!(next.interrupt.count(), 1);
    assert_eq!(next.ack(), 1);
}

#[derive(Debug, Clone)]
enum Wild {
    Register {
        offset: u64,
        value: u32,
    },
    Access {
        offset: u64,
        len: usize,
        write: bool,
    },
    Memory {
        at: u64,
        bytes: Vec<u8>,
    },
    Status(u32),
    Notify(u32),
    Pause,
}

fn wild() -> impl Strategy<Value = Wild> {
    let register = prop::sample::select(vec![
        0x14u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
    ]);
    let value = prop_oneof![
        any::<u32>(),
        0u32..17,
        prop::sample::select(vec![
            RINGS as u32,
            RINGS as u32 + 0x4000,
            RINGS as u32 + 0x8000
        ]),
    ];
    let near = prop_oneof![
        RINGS..RINGS + 0x200,
        RINGS + 0x4000..RINGS + 0x4200,
        RINGS + 0xc000..RINGS + 0xc100
    ];
    prop_oneof![
        4 => (register, value).prop_map(|(offset, value)| Wild::Register { offset, value }),
        1 => (0u64..0x200, 0usize..9, any::<bool>())
            .prop_map(|(offset, len, write)| Wild::Access { offset, len, write }),
        6 => (near, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Wild::Memory { at, bytes }),
        1 => prop::sample::select(vec![0u32, 1, 3, 11, 15, 128]).prop_map(Wild::Status),
        3 => (0u32..3).prop_map(Wild::Notify),
        1 => Just(Wild::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_wild_driver_breaks_nothing_and_can_start_anew(
        device_kind in 0usize..3,
        start in any::<bool>(),
        steps in prop::collection::vec(wild(), 1..80),
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path);
        let mut driver = match device_kind {
            0 => Driver::new(device(open(&path), 2)),
            1 => {
                let (console, input) = Console::new(Box::new(std::io::sink())).unwrap();
                input.enqueue(&[1; 1000]);
                Driver::new(Box::new(console))
            }
            _ => rng(),
        };
        if start {
            driver.start(0);
        }
        for step in steps {
            match step {
                Wild::Register { offset, value } => driver.write(offset, value),
                Wild::Access { offset, len, write: true } => {
                    driver.transport.write(offset, &vec![0xa5; len]);
                }
                Wild::Access { offset, len, write: false } => {
                    driver.transport.read(offset, &mut vec![0; len]);
                }
                Wild::Memory { at, bytes } => driver.put(at, &bytes),
                Wild::Status(value) => driver.write(STATUS, value),
                Wild::Notify(queue) => driver.write(0x50, queue),
                Wild::Pause => {
                    driver.transport.pause().unwrap();
                    // Whatever the state is, it is one that can be loaded.
                    let state = driver.transport.save().unwrap();
                    driver.transport.load(state.clone()).unwrap();
                    prop_assert_eq!(driver.transport.save().unwrap(), state);
                    driver.transport.resume().unwrap();
                }
            }
        }
        // All threads live and work.
        driver.start(0);
        match device_kind {
            0 => for queue in 0..2 {
                prop_assert_eq!(driver.disk_read(queue, 0, 512, true).0, OK);
            },
            1 => {
                driver.request(1, &[readable(BUFFERS, 10)], false);
            }
            _ => prop_assert_eq!(driver.request(0, &[writable(BUFFERS, 8)], false), 8),
        }
    }

    #[test]
    fn random_descriptor_tables_never_hang_a_queue(
        table in prop::collection::vec((
            prop_oneof![BUFFERS..BUFFERS + 0x1000, RINGS..RINGS + 0x1000, any::<u64>()],
            prop_oneof![0u32..600, any::<u32>()],
            0u16..8,
            0u16..20,
        ), 16),
        heads in prop::collection::vec(prop_oneof![0u16..16, any::<u16>()], 1..40),
        idx in prop_oneof![0u16..40, any::<u16>()],
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path);
        let mut driver = Driver::new(device(open(&path), 1));
        driver.start(0);
        let ring = driver.rings[0].clone();
        for (i, (addr, len, flags, next)) in (0u64..).zip(table) {
            let at = ring.desc() + i * 16;
            driver.put(at, &addr.to_le_bytes());
            driver.put(at + 8, &len.to_le_bytes());
            driver.put(at + 12, &flags.to_le_bytes());
            driver.put(at + 14, &next.to_le_bytes());
        }
        for (i, head) in (0u64..).zip(&heads) {
            driver.put(ring.avail() + 4 + i * 2, &head.to_le_bytes());
        }
        driver.put(ring.avail() + 2, &idx.to_le_bytes());
        driver.notify(0);
        driver.transport.pause().unwrap();
        driver.transport.resume().unwrap();
        driver.start(0);
        prop_assert_eq!(driver.disk_read(0, 0, 512, true).0, OK);
    }
}

#[test]
fn transports_end_their_threads_when_dropped() {
    for paused in [false, true] {
        let interrupt = Arc::new(CountedInterrupt::default());
        let transport =
            MmioTransport::new(Box::new(Rng::new()), common::ram(), interrupt.clone()).unwrap();
        if paused {
            transport.pause().unwrap();
        }
        drop(transport);
        // The threads held it too.
        assert_eq!(Arc::strong_count(&interrupt), 1);
    }
}
