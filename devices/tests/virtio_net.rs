//! The network device as a driver sees it, on a network of sockets.

#[path = "common/mod.rs"]
mod common;
#[path = "common/net.rs"]
mod net;

use std::sync::atomic::Ordering;

use common::{
    BUFFERS, DRIVER_OK, Driver, EVENT_IDX, NEEDS_RESET, RAM_SIZE, readable, wait_until, writable,
};
use devices::virtio::net::{Mac, Offloads};
use net::{
    F_CTRL_RX, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_TSO, F_MQ, F_MRG_RXBUF, HEADER, MAC, Wire,
    device, driver,
};
use proptest::prelude::*;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

const RX: usize = 0;
const TX: usize = 1;
const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 77]);
const GROUP: Mac = Mac::new([1, 0, 0x5e, 0, 0, 77]);

fn config(driver: &Driver, offset: u64, len: usize) -> Vec<u8> {
    use devices::BusDevice;
    let mut bytes = vec![0; len];
    driver.transport.read(0x100 + offset, &mut bytes);
    bytes
}

fn status(driver: &Driver) -> u8 {
    config(driver, 6, 2)[0]
}

fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect()
}

#[test]
fn configuration_tells_address_link_pairs_and_mtu() {
    let wire = Wire::new(3);
    let (driver, _port) = driver(&wire, 0);
    assert_eq!(config(&driver, 0, 6), MAC.bytes());
    assert_eq!(config(&driver, 6, 6), [1, 0, 3, 0, 0xdc, 5]);
    // Nothing behind it.
    assert_eq!(config(&driver, 12, 4), [0; 4]);
}

#[test]
fn packets_pass_in_both_directions() {
    for without in [
        0,
        EVENT_IDX,
        F_MRG_RXBUF,
        F_GUEST_TSO,
        EVENT_IDX | F_MRG_RXBUF | F_GUEST_TSO,
    ] {
        let wire = Wire::new(1);
        let (mut driver, _port) = driver(&wire, without);
        for turn in 0..100u8 {
            for i in 0..48 {
                driver.add_buffer(RX, BUFFERS + i * 2048, 2048);
            }
            let frame = content(60 + usize::from(turn), turn);
            driver.transmit(TX, &frame);
            assert_eq!(wire.receive(0), [vec![0; HEADER], frame].concat());
            for i in 0..48 {
                let content = content(80, i);
                wire.send_to(0, MAC, &content);
                let (_, len) = driver.wait_used(RX);
                assert_eq!(len as usize, HEADER + 12 + 80);
                let packet = driver.bytes(BUFFERS + u64::from(i) * 2048, len as usize);
                // No flags, no offloads; one buffer.
                assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                assert_eq!(packet[HEADER + 12..], content);
            }
        }
    }
}

#[test]
fn a_large_packet_takes_as_many_buffers_as_it_needs() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, 0);
    for i in 0..64 {
        driver.add_buffer(RX, BUFFERS + i * 1536, 1536);
    }
    let content = content(40_000, 3);
    wire.send_to(0, MAC, &content);
    let total = HEADER + 12 + content.len();
    let count = total.div_ceil(1536);
    let mut lens = Vec::new();
    let (head, len) = driver.wait_used(RX);
    lens.push(len as usize);
    // Whoever sees the first sees all.
    for i in 1..count {
        let (next, len) = driver.poll(RX).expect("used with the first");
        assert_eq!(usize::from(next), usize::from(head) + i);
        lens.push(len as usize);
    }
    assert_eq!(lens.iter().sum::<usize>(), total);
    assert!(lens[..count - 1].iter().all(|len| *len == 1536));
    let packet = driver.bytes(BUFFERS, total);
    assert_eq!(packet[10..12], (count as u16).to_le_bytes());
    assert!(packet[HEADER + 12..] == content);
    assert_eq!(driver.poll(RX), None);
}

#[test]
fn a_packet_that_does_not_fit_is_lost_and_the_next_one_is_not() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, F_MRG_RXBUF);
    driver.add_buffer(RX, BUFFERS, 256);
    wire.send_to(0, MAC, &content(1000, 1));
    let fits = content(256 - HEADER - 12, 2);
    wire.send_to(0, MAC, &fits);
    let (_, len) = driver.wait_used(RX);
    assert_eq!(len, 256);
    assert_eq!(driver.bytes(BUFFERS + 24, fits.len()), fits);
    // Behind the buffer nothing was written.
    assert_eq!(driver.bytes(BUFFERS + 256, 1024), [0; 1024]);
}

#[test]
fn a_driver_with_few_buffers_gets_what_fits_them() {
    let wire = Wire::new(1);
    // It could be given 64 KiB at once, and makes 4 available.
    let (mut driver, _port) = driver(&wire, 0);
    for turn in 0..3 {
        driver.add_buffer(RX, BUFFERS, 2048);
        driver.add_buffer(RX, BUFFERS + 2048, 2048);
        wire.send_to(0, MAC, &content(10_000, turn));
        wire.send_to(0, MAC, &content(1000, turn));
        let (_, len) = driver.wait_used(RX);
        assert_eq!(len as usize, HEADER + 12 + 1000);
        wire.send_to(0, MAC, &content(100, turn));
        let (_, len) = driver.wait_used(RX);
        assert_eq!(len as usize, HEADER + 12 + 100);
    }
}

#[test]
fn packets_wait_until_the_driver_adds_buffers() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, F_GUEST_TSO);
    for i in 0..5 {
        wire.send_to(0, MAC, &[i; 50]);
    }
    for i in 0..5 {
        driver.add_buffer(RX, BUFFERS, 2048);
        driver.wait_used(RX);
        assert_eq!(driver.bytes(BUFFERS + 24, 50), [i; 50]);
    }
}

#[test]
fn what_the_device_writes_is_marked_dirty() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, F_GUEST_TSO);
    let at = BUFFERS + 0x1_0f00;
    driver.add_buffer(RX, at, 2048);
    for region in driver.ram.iter() {
        let mapping: &MmapRegion<AtomicBitmap> = region;
        mapping.bitmap().reset();
    }
    wire.send_to(0, MAC, &content(1000, 1));
    driver.wait_used(RX);
    // Two pages of the packet, and the one of the used ring.
    let region = driver.ram.iter().nth(1).unwrap();
    let offset = (at - RAM_SIZE as u64 / 2) as usize;
    assert!(region.bitmap().dirty_at(offset));
    assert!(region.bitmap().dirty_at(offset + 0x100));
    assert!(!region.bitmap().dirty_at(offset + 0x1100));
    let used = driver.rings[RX].used() as usize;
    assert!(driver.ram.iter().next().unwrap().bitmap().dirty_at(used));
}

#[test]
fn only_the_pairs_that_the_driver_uses_take_part() {
    let wire = Wire::new(2);
    let (mut driver, _port) = driver(&wire, F_GUEST_TSO);
    let control = 4;
    assert_eq!(wire.pairs.load(Ordering::SeqCst), 1);
    driver.add_buffer(2, BUFFERS, 2048);
    wire.send_to(1, MAC, &[1; 50]);
    for (pairs, done) in [(0u16, false), (3, false), (2, true), (1, true), (2, true)] {
        assert_eq!(
            driver.control(control, 4, 0, &pairs.to_le_bytes()),
            done,
            "{pairs}"
        );
        if done {
            assert_eq!(wire.pairs.load(Ordering::SeqCst), pairs);
        }
    }
    let (_, len) = driver.wait_used(2);
    assert_eq!(len as usize, HEADER + 12 + 50);
    driver.transmit(3, &[5; 60]);
    assert_eq!(wire.receive(1)[HEADER..], [5; 60]);
    driver.start(0);
    assert_eq!(wire.pairs.load(Ordering::SeqCst), 1, "after a reset");
}

#[test]
fn a_driver_without_multi_queue_finds_the_control_queue_behind_one_pair() {
    let wire = Wire::new(2);
    let (mut driver, _port) = driver(&wire, F_MQ | F_GUEST_TSO);
    assert!(driver.control(2, 0, 0, &[0]), "promiscuous off");
    assert!(
        !driver.control(2, 4, 0, &[2, 0]),
        "pairs were not agreed on"
    );
    driver.add_buffer(RX, BUFFERS, 2048);
    wire.send_to(0, MAC, &[1; 50]);
    driver.wait_used(RX);
}

/// Which of four packets come through.
fn coming(driver: &mut Driver, wire: &Wire) -> [bool; 4] {
    [MAC, OTHER, GROUP, Mac::BROADCAST].map(|to| {
        wire.send_to(0, to, b"perhaps");
        // Behind what is dropped comes one that is not.
        wire.send_to(0, MAC, b"at last");
        let mut next = || {
            driver.add_buffer(RX, BUFFERS, 2048);
            driver.wait_used(RX);
            driver.bytes(BUFFERS + 24, 7) == b"perhaps"
        };
        let passed = next();
        assert!(!passed || !next());
        passed
    })
}

#[test]
fn a_driver_gets_the_packets_that_it_asked_for() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, F_GUEST_TSO);
    assert_eq!(
        coming(&mut driver, &wire),
        [true; 4],
        "until it says otherwise"
    );
    assert!(driver.control(2, 0, 0, &[0]), "promiscuous off");
    assert_eq!(coming(&mut driver, &wire), [true, false, false, true]);
    let table = |own: &[Mac], groups: &[Mac]| {
        let mut bytes = Vec::new();
        for list in [own, groups] {
            bytes.extend((list.len() as u32).to_le_bytes());
            bytes.extend(list.iter().flat_map(|mac| mac.bytes()));
        }
        bytes
    };
    assert!(driver.control(2, 1, 0, &table(&[OTHER], &[GROUP])));
    assert_eq!(coming(&mut driver, &wire), [true; 4]);
    // More groups than are told apart: all of them.
    assert!(driver.control(2, 1, 0, &table(&[], &[OTHER; 100])));
    assert_eq!(coming(&mut driver, &wire), [true, false, true, true]);
    assert!(driver.control(2, 1, 0, &table(&[], &[])));
    assert!(driver.control(2, 0, 5, &[1]), "no broadcast");
    assert_eq!(coming(&mut driver, &wire), [true, false, false, false]);
    // A count that the command does not hold changes nothing.
    assert!(!driver.control(2, 1, 0, &[255, 255, 255, 255, 0, 0]));
    assert!(!driver.control(2, 1, 0, &table(&[OTHER], &[])[..9]));
    assert!(driver.control(2, 0, 1, &[1]), "all groups");
    assert_eq!(coming(&mut driver, &wire), [true, false, true, false]);
    // A driver that never asked for filters.
    driver.start(F_CTRL_RX | F_GUEST_TSO);
    assert!(!driver.control(2, 0, 0, &[0]));
    assert_eq!(coming(&mut driver, &wire), [true; 4]);
}

#[test]
fn an_address_that_the_driver_sets_is_its_own_until_a_reset() {
    let wire = Wire::new(1);
    let (mut driver, port) = driver(&wire, F_GUEST_TSO);
    assert!(!driver.control(2, 1, 1, &GROUP.bytes()), "of no station");
    assert!(driver.control(2, 1, 1, &OTHER.bytes()));
    assert_eq!(config(&driver, 0, 6), OTHER.bytes());
    assert!(port.announce().unwrap());
    assert_eq!(wire.receive(0)[HEADER + 6..HEADER + 12], OTHER.bytes());
    driver.write(0x70, 0);
    assert_eq!(config(&driver, 0, 6), MAC.bytes());
}

#[test]
fn the_network_leaves_to_the_guest_what_was_agreed() {
    let wire = Wire::new(1);
    let set = || Offloads::from_bits(wire.offloads.load(Ordering::SeqCst));
    let (mut driver, _port) = driver(&wire, 0);
    assert_eq!(set(), Some(Offloads::ALL));
    // GUEST_CSUM and GUEST_TSO4.
    let some = (1u64 << 1 | 1 << 7).to_le_bytes();
    assert!(driver.control(2, 5, 0, &some));
    assert_eq!(set(), Offloads::from_bits(3));
    assert!(!driver.control(2, 5, 0, &(1u64 << 10).to_le_bytes()), "UFO");
    assert!(!driver.control(2, 5, 0, &some[..7]));
    assert_eq!(set(), Offloads::from_bits(3));
    driver.start(F_GUEST_TSO);
    assert_eq!(set(), Some(Offloads::CHECKSUM));
    driver.write(0x70, 0);
    assert_eq!(set(), Some(Offloads::NONE));
}

#[test]
fn a_guest_that_can_be_asked_announces_itself() {
    let wire = Wire::new(1);
    let (mut driver, port) = driver(&wire, 0);
    let generation = driver.read(0xfc);
    port.ask_guest_to_announce();
    assert_eq!(status(&driver), 3);
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(driver.ack() & 2, 2, "configuration changed");
    assert!(driver.interrupt.count() > 0 && port.is_guest_announcing());
    assert!(driver.control(2, 3, 0, &[]));
    assert_eq!(status(&driver), 1);
    assert!(!port.is_guest_announcing());

    driver.start(F_GUEST_ANNOUNCE);
    port.ask_guest_to_announce();
    assert_eq!(status(&driver), 1);
    assert!(!driver.control(2, 3, 0, &[]));
}

#[test]
fn a_device_that_was_not_resumed_is_silent_and_then_announces_itself() {
    let wire = Wire::new(2);
    let (net, port) = device(&wire);
    let driver = Driver::new(net);
    driver.transport.pause().unwrap();
    assert_eq!(wire.pairs.load(Ordering::SeqCst), 0);
    assert!(!port.announce().unwrap());
    driver.transport.resume().unwrap();
    assert_eq!(wire.pairs.load(Ordering::SeqCst), 1);
    assert!(port.announce().unwrap());
    let packet = wire.receive(0);
    assert_eq!(packet[HEADER..HEADER + 6], Mac::BROADCAST.bytes());
    assert_eq!(
        packet[HEADER + 6..HEADER + 14],
        [&MAC.bytes()[..], &[0x80, 0x35]].concat()
    );
    driver.transport.pause().unwrap();
    assert!(!port.announce().unwrap());
    drop(driver);
    assert!(!port.announce().unwrap());
    assert!(wire.is_silent(0));
}

#[test]
fn a_network_that_refuses_keeps_the_device_paused() {
    let wire = Wire::new(1);
    let (net, _port) = device(&wire);
    let driver = Driver::new(net);
    driver.transport.pause().unwrap();
    *wire.refuses.lock().unwrap() = Some(std::io::ErrorKind::PermissionDenied);
    assert!(driver.transport.resume().is_err());
    driver.transport.save().expect("it is paused");
    *wire.refuses.lock().unwrap() = None;
    driver.transport.resume().unwrap();
}

#[test]
fn packets_that_waited_elsewhere_come_first() {
    let (here, there) = (Wire::new(2), Wire::new(2));
    let (mut source, leaving) = driver(&here, F_GUEST_TSO);
    assert!(source.control(4, 4, 0, &[2, 0]));
    assert!(leaving.take_waiting(1 << 20).is_empty(), "it runs");
    source.transport.pause().unwrap();
    here.send_to(0, MAC, b"first");
    here.send_to(1, MAC, b"second");
    let state = source.transport.save().unwrap();
    let (net, coming) = device(&there);
    let mut next = source.moved_to(net);
    next.transport.pause().unwrap();
    next.transport.load(state).unwrap();
    next.transport.resume().unwrap();
    assert_eq!(there.pairs.load(Ordering::SeqCst), 2);

    assert!(leaving.take_waiting(100).is_empty(), "no room for one");
    let packets = leaving.take_waiting(1 << 20);
    assert_eq!(packets.len(), 2);
    assert!(leaving.take_waiting(1 << 20).is_empty());
    coming.give(packets).unwrap();
    there.send_to(0, MAC, b"third");
    for content in [&b"first"[..], b"second", b"third"] {
        next.add_buffer(RX, BUFFERS, 2048);
        next.wait_used(RX);
        assert_eq!(next.bytes(BUFFERS + 24, content.len()), content);
    }
    assert!(coming.give(vec![vec![0; 11]]).is_err());
    assert!(coming.give(vec![vec![0; 70_000]]).is_err());
}

#[test]
fn states_that_do_not_fit_are_refused() {
    use devices::virtio::DeviceStateV1;
    let wire = Wire::new(2);
    let (driver, _port) = driver(&wire, 0);
    driver.transport.pause().unwrap();
    let good = driver.transport.save().unwrap();
    let mut bad = Vec::new();
    let mut change = |f: &dyn Fn(&mut devices::virtio::net::NetStateV1)| {
        let mut state = good.clone();
        let DeviceStateV1::Net(net) = &mut state.first.device else {
            panic!("{:?}", state.first.device);
        };
        f(net);
        bad.push(state);
    };
    change(&|net| net.mac = [1; 6]);
    change(&|net| net.pairs = 0);
    change(&|net| net.pairs = 3);
    change(&|net| net.offloads = 0x10);
    change(&|net| {
        net.filter.unicast = devices::virtio::net::filter::TableV1::These(vec![[2; 6]; 65]);
    });
    for state in bad {
        assert!(driver.transport.load(state).is_err());
        assert_eq!(driver.transport.save().unwrap(), good);
    }
    driver.transport.load(good).unwrap();
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset() {
    let outside = RAM_SIZE as u64 + 4096;
    let wrong = [
        (
            "readable buffer to receive into",
            RX,
            vec![readable(BUFFERS, 2048)],
        ),
        ("no room for a header", RX, vec![writable(BUFFERS, 11)]),
        ("outside of memory", RX, vec![writable(outside, 2048)]),
        (
            "around the end of addresses",
            RX,
            vec![writable(u64::MAX - 100, 2048)],
        ),
        ("packet without a header", TX, vec![readable(BUFFERS, 11)]),
        ("packet outside of memory", TX, vec![readable(outside, 100)]),
        ("command without an answer", 2, vec![readable(BUFFERS, 3)]),
    ];
    for (what, queue, segments) in wrong {
        let wire = Wire::new(1);
        let (mut driver, _port) = driver(&wire, 0);
        driver.offer(queue, &segments, false);
        driver.notify(queue);
        wait_until(what, || driver.status() & NEEDS_RESET != 0);
        driver.start(0);
        driver.transmit(TX, &[1; 60]);
        assert_eq!(wire.receive(0).len(), HEADER + 60, "{what}");
    }
}

#[test]
fn a_packet_that_is_too_long_is_lost_and_completed() {
    let wire = Wire::new(1);
    let (mut driver, _port) = driver(&wire, 0);
    assert_eq!(driver.request(TX, &[readable(BUFFERS, 65_563)], false), 0);
    driver.transmit(TX, &[1; 60]);
    assert_eq!(wire.receive(0).len(), HEADER + 60);
    assert_eq!(driver.status() & DRIVER_OK, DRIVER_OK);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A command of any content is answered, and the device goes on.
    #[test]
    fn any_command_is_answered(
        class in 0u8..8, command in 0u8..8, data in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let wire = Wire::new(2);
        let (mut driver, _port) = driver(&wire, F_GUEST_TSO);
        driver.control(4, class, command, &data);
        prop_assert_eq!(driver.status() & NEEDS_RESET, 0);
        driver.transport.pause().unwrap();
        let state = driver.transport.save().unwrap();
        driver.transport.load(state).unwrap();
    }

    /// Whatever chains are added and sent, nothing panics or hangs, and after a reset all is well.
    #[test]
    fn any_chain_ends_in_order(
        chains in prop::collection::vec(
            (0usize..3, prop::collection::vec((any::<bool>(), 0u64..3, 0u32..70_000), 1..5)), 1..20),
    ) {
        let wire = Wire::new(1);
        let (mut driver, _port) = driver(&wire, 0);
        for (queue, pieces) in chains {
            let segments: Vec<_> = pieces
                .into_iter()
                .map(|(write, place, len)| {
                    let at = [BUFFERS, RAM_SIZE as u64 - 100, u64::MAX - 5][place as usize];
                    if write { writable(at, len) } else { readable(at, len) }
                })
                .collect();
            driver.offer(queue, &segments, false);
            driver.notify(queue);
            wire.send_to(0, MAC, &[1; 100]);
        }
        driver.transport.pause().unwrap();
        driver.transport.save().unwrap();
        driver.transport.resume().unwrap();
        driver.start(F_GUEST_TSO);
        while !wire.is_silent(0) {}
        driver.transmit(TX, &[1; 60]);
        prop_assert_eq!(wire.receive(0).len(), HEADER + 60);
    }

    /// Packets of either direction arrive once and in order, wherever the device is moved.
    #[test]
    fn no_packet_is_lost_or_doubled_by_a_move(
        steps in prop::collection::vec(0u8..6, 1..60),
        without in prop::sample::select(vec![0, EVENT_IDX, F_GUEST_TSO, F_MRG_RXBUF | EVENT_IDX]),
    ) {
        let wire = Wire::new(1);
        let (mut driver, _port) = driver(&wire, without);
        let large = without & F_GUEST_TSO == 0 && without & F_MRG_RXBUF == 0;
        let buffer_len = if large { 70_000 } else { 2048 };
        let (mut sent, mut got, mut added, mut given) = (0u32, 0u32, 0u32, 0u32);
        let take = |driver: &mut Driver, got: &mut u32| {
            let mut numbers = Vec::new();
            while let Some((_, len)) = driver.poll(RX) {
                numbers.push(len);
                *got += 1;
            }
            numbers
        };
        for step in steps {
            match step {
                // Towards the guest; the length is the number.
                0 | 1 if sent - got < 40 => {
                    wire.send_to(0, MAC, &vec![0; sent as usize + 1]);
                    sent += 1;
                }
                2 if added - got < 20 => {
                    driver.add_buffer(RX, BUFFERS + u64::from(added % 20) * 70_000 / 4, buffer_len);
                    added += 1;
                }
                3 => {
                    driver.offer(TX, &[readable(BUFFERS + 0x20_0000, 100 + given)], false);
                    driver.notify(TX);
                    given += 1;
                }
                4 => {
                    driver.transport.pause().unwrap();
                    driver.transport.resume().unwrap();
                }
                5 => {
                    driver.transport.pause().unwrap();
                    let state = driver.transport.save().unwrap();
                    let json = serde_json::to_string(&state).unwrap();
                    let (net, _port) = device(&wire);
                    let next = driver.moved_to(net);
                    next.transport.pause().unwrap();
                    next.transport.load(serde_json::from_str(&json).unwrap()).unwrap();
                    prop_assert_eq!(next.transport.save().unwrap(), state);
                    driver = next;
                    driver.transport.resume().unwrap();
                }
                _ => {}
            }
            let first = got;
            for (i, len) in take(&mut driver, &mut got).into_iter().enumerate() {
                prop_assert_eq!(len, HEADER as u32 + 12 + first + i as u32 + 1);
            }
        }
        for number in 0..given {
            prop_assert_eq!(wire.receive(0).len() as u32, 100 + number);
        }
        prop_assert!(wire.is_silent(0));
        while got < sent {
            if added == got {
                driver.add_buffer(RX, BUFFERS, buffer_len);
                added += 1;
            }
            let (_, len) = driver.wait_used(RX);
            got += 1;
            prop_assert_eq!(len, HEADER as u32 + 12 + got);
        }
    }
}

#[test]
fn the_features_that_are_offered_are_those_that_work() {
    let wire = Wire::new(1);
    let (driver, _port) = driver(&wire, 0);
    assert_eq!(driver.features & F_MQ, 0, "one pair");
    assert_ne!(driver.features & F_CTRL_VQ, 0);
    // UFO in either direction, VLAN filters, RSS, hash reports: none of it is there.
    let absent = 1 << 10 | 1 << 14 | 1 << 19 | 1 << 57 | 1 << 60;
    assert_eq!(driver.features & absent, 0);
}
