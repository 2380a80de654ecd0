//! Decoders against whatever a peer may send, and the bytes that must never change.

use std::path::PathBuf;
use std::time::Duration;

use migration::observation::{Observation, Side};
use migration::progress::Verify;
use migration::transport::{Connect, Connection, Listen, Patience, memory};
use migration::vm::{MachineDescription, RamRegion, RunState, TravellingDisk, VolumeOffer, Wish};
use migration::wire::batch::{
    BATCH_LEN, BatchHeader, BatchKind, Encoding, MAX_PAYLOAD, MAX_RANGES, PageRange, RANGE_LEN,
};
use migration::wire::blocks::{BlockEncoding, BlockRange};
use migration::wire::capabilities::Capabilities;
use migration::wire::control::{
    Answer, BlockDigests, BlocksPresent, Committed, ControlHeader, Extents, Intent, LastPass,
    Message, Negotiate, Negotiated, PassPlaced, Prepared, Ready, Resolution, SomeBlocks, Welcome,
};
use migration::wire::hello::{HELLO_LEN, Hello, Role};
use migration::{HostId, MigrationId};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

fn every_message() -> Vec<Message> {
    let mut observation = Observation::new(Side::Destination, "test.golden", "no such disk");
    observation.at_us = 1_700_000_000_000_000;
    vec![
        Message::Welcome(Welcome {
            version: 1,
            token: [7; 16],
            host: None,
            capabilities: None,
            placed: None,
        }),
        Message::Negotiate(Box::new(Negotiate {
            machine: MachineDescription {
                name: "golden".into(),
                ram: vec![RamRegion {
                    gpa: 0,
                    len: 1 << 20,
                }],
                machine: "{\"cpus\":2}".into(),
                disks: None,
            },
            run_state: RunState::Running,
            streams: 2,
            verify: Verify::Stream,
            intent: Intent::Migrate,
            state: None,
            volumes: Vec::new(),
            reconnect_ms: None,
        })),
        Message::Negotiated(Negotiated::default()),
        Message::Prepare,
        Message::Prepared(Prepared {
            journal_ms: 0.25,
            hash_bytes_per_s: None,
            disks: Vec::new(),
            kept_disks: Vec::new(),
        }),
        Message::Extents(Extents {
            extents: vec![(0, 8192), (65536, 4096)],
        }),
        Message::PassPlaced(PassPlaced {
            pass: 3,
            flush_us: None,
        }),
        Message::LastPass(LastPass {
            pass: 4,
            saved: None,
            run_state: None,
            disks: None,
        }),
        Message::State(vec![1, 2, 3]),
        Message::Ready(Ready {
            digest: Some("nh64:0123456789abcdef".into()),
            disks_digest: None,
            whole_disks: Vec::new(),
            load_ms: 1.5,
        }),
        Message::Commit,
        Message::Committed(Committed {
            journal_ms: 0.5,
            start_ms: 0.125,
            warnings: Vec::new(),
        }),
        Message::Finish,
        Message::Failure(Box::new(observation)),
        Message::Ping(1234),
        Message::Pong(1234),
        Message::Resolution(Answer {
            resolution: Resolution::NeverRan,
            host: None,
        }),
        Message::PlanEnd,
        Message::Forwarded(vec![4, 5, 6]),
    ]
}

/// What version 2 tells in other bytes.
fn messages_of_version_2() -> Vec<Message> {
    let host = Some(HostId([0xa5; 16]));
    vec![
        Message::Welcome(Welcome {
            version: 2,
            token: [7; 16],
            host,
            capabilities: None,
            placed: None,
        }),
        Message::Resolution(Answer {
            resolution: Resolution::Ran,
            host,
        }),
    ]
}

/// What version 4 tells in other bytes.
fn messages_of_version_4() -> Vec<Message> {
    let Message::Negotiate(mut negotiate) = every_message().swap_remove(1) else {
        unreachable!()
    };
    negotiate.state = Some("{\"rtc\":[1,2]}".into());
    vec![
        Message::Welcome(Welcome {
            version: 4,
            token: [7; 16],
            host: Some(HostId([0xa5; 16])),
            capabilities: Some(Capabilities::of_version(4).bits()),
            placed: None,
        }),
        Message::Negotiate(negotiate),
        Message::Negotiated(Negotiated {
            state: Some("{\"rtc\":2}".into()),
            volumes: Vec::new(),
        }),
    ]
}

fn split(frame: &[u8]) -> (ControlHeader, &[u8]) {
    let (header, body) = ControlHeader::read_from_prefix(frame).unwrap();
    (header, body)
}

/// Compares with a file of `tests/goldens`; `UPDATE_GOLDENS` writes it anew.
fn assert_golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(name);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(golden == bytes, "{name} travels in other bytes than it did");
}

#[test]
fn control_frames_are_the_bytes_of_their_version() {
    let all = [
        ("v1", every_message()),
        ("v2", messages_of_version_2()),
        ("v4", messages_of_version_4()),
    ];
    for (version, message) in all
        .into_iter()
        .flat_map(|(version, all)| all.into_iter().map(move |message| (version, message)))
    {
        let frame = message.encode().unwrap();
        assert_golden(&format!("{version}-{}.bin", message.name()), &frame);
        let (header, body) = split(&frame);
        assert_eq!(Message::decode(&header, body.to_vec()).unwrap(), message);
    }
}

/// What those tell each other of which one has disks that travel, and the other takes them.
#[test]
fn disks_that_travel_are_the_bytes_of_their_capability() {
    let Message::Negotiate(mut negotiate) = every_message().swap_remove(1) else {
        unreachable!()
    };
    negotiate.volumes = vec![VolumeOffer {
        id: "data".into(),
        size: 1 << 30,
        allocated: 1 << 20,
        wish: Wish::Travels,
        format: None,
        served: None,
        behind: Vec::new(),
    }];
    let negotiated = Message::Negotiated(Negotiated {
        state: None,
        volumes: vec![TravellingDisk {
            id: "data".into(),
            why: Some("it is not here".into()),
        }],
    });
    let ready = Message::Ready(Ready {
        digest: None,
        disks_digest: Some("nh64:0123456789abcdef".into()),
        whole_disks: Vec::new(),
        load_ms: 1.5,
    });
    for message in [Message::Negotiate(negotiate), negotiated, ready] {
        let frame = message.encode().unwrap();
        assert_golden(&format!("volumes-{}.bin", message.name()), &frame);
        let (header, body) = split(&frame);
        assert_eq!(Message::decode(&header, body.to_vec()).unwrap(), message);
    }
    let of = SomeBlocks {
        volume: 1,
        first: 128,
        bits: 0b101,
    };
    let digests = vec![[0xd1; 16], [0xd2; 16]];
    let question = Message::BlockDigests(BlockDigests { of, digests });
    let answer = Message::BlocksPresent(BlocksPresent(of));
    let prepared = Message::Prepared(Prepared {
        journal_ms: 0.25,
        hash_bytes_per_s: None,
        disks: Vec::new(),
        kept_disks: vec![0, 2],
    });
    for message in [prepared, question, answer] {
        let frame = message.encode().unwrap();
        assert_golden(&format!("kept-{}.bin", message.name()), &frame);
        let (header, body) = split(&frame);
        assert_eq!(Message::decode(&header, body.to_vec()).unwrap(), message);
    }
    let there = BlockRange::new(1, 0..1 << 16, BlockEncoding::Present);
    assert_golden("kept-range.bin", there.as_bytes());
    let ranges = [
        BlockRange::new(0, 0x1000..0x3000, BlockEncoding::Raw),
        BlockRange::new(7, 1 << 40..(1 << 40) + 512, BlockEncoding::Zero),
    ];
    let header = BatchHeader::of(2, &ranges);
    let bytes = [header.as_bytes(), ranges.as_bytes()].concat();
    assert_golden("volumes-batch.bin", &bytes);
    let (ranges, payload) = (2, 8192);
    assert_eq!(
        header.kind().unwrap(),
        BatchKind::Blocks { ranges, payload }
    );
}

#[test]
fn hello_and_batches_are_the_bytes_of_their_version() {
    let mut hello = Hello::new(Role::Data { stream: 3 }, MigrationId([1; 16]), [2; 16]);
    assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
    hello.capabilities = Capabilities::of_version(4);
    assert_golden("v4-hello.bin", &hello.encode());
    for version in [3, 2, 1] {
        hello.version = version;
        hello.capabilities = Capabilities::NONE;
        assert_golden(&format!("v{version}-hello.bin"), &hello.encode());
        assert_eq!(hello.common_version(), Some(version));
    }
    let ranges = [
        PageRange::new(0x1000, 2, Encoding::Raw),
        PageRange::new(0x1_0000_0000, 512, Encoding::Zero),
    ];
    let header = BatchHeader::of(1, &ranges);
    assert_golden(
        "v1-batch.bin",
        &[header.as_bytes(), ranges.as_bytes()].concat(),
    );
    assert_golden("v1-pass-end.bin", BatchHeader::pass_end(2).as_bytes());
    header.verify(&ranges).unwrap();
    assert_eq!(
        header.kind().unwrap(),
        BatchKind::Pages {
            ranges: 2,
            payload: 8192
        }
    );
}

#[test]
fn every_flipped_bit_of_a_control_frame_is_found() {
    for message in every_message() {
        let frame = message.encode().unwrap();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (header, body) = split(&damaged);
            let refused = Message::body_len(&header).is_err()
                || Message::decode(&header, body.to_vec()).is_err();
            assert!(refused, "{} bit {bit}", message.name());
        }
    }
}

#[test]
fn every_flipped_bit_of_a_batch_header_is_found() {
    let ranges = [PageRange::new(0x1000, 2, Encoding::Raw)];
    let header = BatchHeader::of(1, &ranges);
    let whole = [header.as_bytes(), ranges.as_bytes()].concat();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let header = BatchHeader::read_from_bytes(&damaged[..BATCH_LEN]).unwrap();
        let range = PageRange::read_from_bytes(&damaged[BATCH_LEN..]).unwrap();
        assert!(
            header.kind().is_err() || header.verify(&[range]).is_err(),
            "bit {bit}"
        );
    }
}

#[test]
fn a_state_beyond_the_limit_does_not_encode() {
    assert!(Message::State(vec![0; (64 << 20) + 1]).encode().is_err());
}

fn connected() -> (Box<dyn Connection>, Box<dyn Connection>) {
    let (connect, listen) = memory::network(&[]);
    let timeout = Duration::from_millis(50);
    let patience = Patience {
        timeout,
        give_up: &|| false,
    };
    let one = connect.connect(patience).unwrap();
    let other = listen.accept(timeout).unwrap().unwrap();
    other.set_io_timeout(timeout).unwrap();
    (one, other)
}

#[test]
fn a_frame_that_stops_in_the_middle_ends_in_an_error() {
    let frame = every_message()[1].encode().unwrap();
    for length in [0, 1, 23, 24, 25, frame.len() - 1] {
        let (one, other) = connected();
        one.send(&frame[..length]).unwrap();
        assert!(Message::receive(&*other).is_err(), "stalled after {length}");
        let (one, other) = connected();
        one.send(&frame[..length]).unwrap();
        drop(one);
        assert!(Message::receive(&*other).is_err(), "closed after {length}");
    }
}

proptest! {
    #[test]
    fn garbage_is_no_hello(bytes in proptest::array::uniform32(any::<u8>())) {
        let mut hello = [0; HELLO_LEN];
        hello[..32].copy_from_slice(&bytes);
        prop_assert!(Hello::decode(&hello).is_err());
    }

    #[test]
    fn garbage_is_no_control_frame(bytes in proptest::collection::vec(any::<u8>(), 24..200)) {
        let (header, body) = split(&bytes);
        prop_assert!(Message::body_len(&header).is_err() || Message::decode(&header, body.to_vec()).is_err());
    }

    #[test]
    fn any_body_under_a_right_header_is_refused_or_read(
        which in 0usize..18,
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        // The check is right, so the decoders of the bodies are reached.
        let template = every_message().swap_remove(which).encode().unwrap();
        let mut frame = template[..24].to_vec();
        frame[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        frame[16..24].fill(0);
        let hash = blake3::Hasher::new().update(&frame).update(&body).finalize();
        frame[16..24].copy_from_slice(&hash.as_bytes()[..8]);
        let (header, _) = split(&frame);
        if Message::body_len(&header).is_ok()
            && let Ok(message) = Message::decode(&header, body)
        {
            prop_assert!(message.encode().is_ok());
        }
    }

    #[test]
    fn batch_headers_never_announce_more_than_the_limits(bytes in proptest::array::uniform32(any::<u8>())) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(b"vmmP");
        let header = BatchHeader::read_from_bytes(&bytes[..BATCH_LEN]).unwrap();
        if let Ok(BatchKind::Pages { ranges, payload }) = header.kind() {
            prop_assert!(ranges <= MAX_RANGES && payload <= MAX_PAYLOAD);
        }
    }

    #[test]
    fn ranges_tell_a_wrong_payload(bytes in proptest::array::uniform24(any::<u8>())) {
        let range = PageRange::read_from_bytes(&bytes[..RANGE_LEN]).unwrap();
        if let Ok(Encoding::Raw) = range.encoding() {
            prop_assert_eq!(range.payload(), range.pages() * 4096);
        }
    }
}
