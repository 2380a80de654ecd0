//! What a peer sends: the hello, control frames, page batches.
//!
//! Every header carries a check over what it describes, which no mutation ever hits. So the targets
//! put the right one in, unless the input says that it wants its own.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use migration::observation::{Observation, Side};
use migration::progress::{Event, Report, Verify};
use migration::transport::{Connection, Piece, Within, scatter};
use migration::vm::{MachineDescription, RamRegion, RunState};
use migration::wire::batch::{
    BATCH_LEN, BatchHeader, BatchKind, BatchRange, Encoding, MAX_PAYLOAD, MAX_RANGES, PageRange,
};
use migration::wire::blocks::{BlockEncoding, BlockRange};
use migration::wire::control::{
    Answer, BlockDigests, BlocksPresent, CONTROL_LEN, CONTROL_MAGIC, Committed, Extents, Intent,
    LastPass, Message, Negotiate, Negotiated, PassPlaced, Prepared, Ready, Resolution, SomeBlocks,
    Welcome,
};
use migration::wire::hello::{HELLO_LEN, Hello, Role};
use migration::{HostId, MigrationId};

use crate::target::SMALL;
use crate::{Input, Memory, Target};

/// Where the check of each header lies.
const HELLO_CHECK: usize = HELLO_LEN - 8;
const CONTROL_CHECK: usize = CONTROL_LEN - 8;
const BATCH_CHECK: usize = BATCH_LEN - 8;

/// The hello of a connection.
pub(super) const HELLO: Target = Target {
    name: "hello",
    run: hello,
    seeds: hello_seeds,
    words: &["vmm-migr"],
    longest: 1 + HELLO_LEN,
    memory: SMALL,
};

/// Control frames, one after the other.
pub(super) const CONTROL: Target = Target {
    name: "control",
    run: control,
    seeds: control_seeds,
    words: &[
        "\"causes\":[",
        "\"extents\":[[",
        "null",
        "1e999",
        "\\u0000",
        "\"ran\"",
        "{",
        "[",
    ],
    longest: 8192,
    // A frame is read in pieces of 1 MiB, whatever its header says; its body and what it says are
    // held at once.
    memory: Memory {
        base: 4 << 20,
        per_byte: 1 << 10,
    },
};

/// The header of a page batch and its ranges.
pub(super) const BATCH: Target = Target {
    name: "batch",
    run: batch,
    seeds: batch_seeds,
    words: &["vmmP"],
    longest: 2048,
    memory: SMALL,
};

/// First bytes of a hash over `parts`, as the protocol checks headers (docs/protocol.md).
fn check_of(bytes: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    check
}

/// Puts the right check at `at` into what it covers.
pub(super) fn seal(bytes: &mut [u8], at: usize) {
    if let Some(field) = bytes.get_mut(at..at + 8) {
        field.fill(0);
        let check = check_of(bytes);
        bytes[at..at + 8].copy_from_slice(&check);
    }
}

/// A control frame of any kind with any body, correct as far as its header goes.
pub(super) fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = CONTROL_MAGIC.to_le_bytes().to_vec();
    frame.extend_from_slice(&kind.to_le_bytes());
    frame.extend_from_slice(&[0; 2]);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.resize(CONTROL_LEN, 0);
    frame.extend_from_slice(body);
    seal(&mut frame, CONTROL_CHECK);
    frame
}

/// Kind of a frame.
pub(super) fn kind_of(frame: &[u8]) -> u16 {
    u16::from_le_bytes([frame[4], frame[5]])
}

fn hello(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sealed = input.u8() & 1 == 0;
    let mut hello: [u8; HELLO_LEN] = input.array();
    if sealed {
        seal(&mut hello, HELLO_CHECK);
    }
    if let Ok(read) = Hello::decode(&hello) {
        let _ = read.common_version();
        let again = Hello::decode(&read.encode());
        assert_eq!(again.ok(), Some(read));
    }
}

fn hello_seeds() -> Vec<Vec<u8>> {
    let roles = [
        Role::Control,
        Role::Data { stream: 3 },
        Role::Resolve,
        Role::Again,
        Role::Pull { lane: 1 },
    ];
    let hellos = roles.map(|role| Hello::new(role, MigrationId([7; 16]), [9; 16]));
    hellos.map(|h| [&[1][..], &h.encode()].concat()).into()
}

/// A connection that gives what it was made of, and then ends.
pub(super) struct Bytes<'a>(Mutex<Input<'a>>);

impl<'a> Bytes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(Mutex::new(Input::new(bytes)))
    }
}

impl Connection for Bytes<'_> {
    fn send_pieces(&self, _: &[u8], _: &[Piece<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        let mut input = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
        scatter(bytes, pieces, |part| {
            let given = input.bytes(part.len());
            part[..given.len()].copy_from_slice(given);
            if given.len() < part.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(())
        })
    }

    fn send_within(&self, bytes: &[u8], _: Within) -> io::Result<()> {
        self.send(bytes)
    }

    fn receive_within(&self, bytes: &mut [u8], _: Within) -> io::Result<()> {
        self.receive(bytes)
    }

    fn wait_readable(&self, _: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn set_io_timeout(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self) {}
}

fn control(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut stream = Vec::new();
    if input.u8() & 1 == 1 {
        stream.extend_from_slice(input.rest());
    }
    while !input.is_empty() {
        let kind = input.u8();
        stream.extend(frame(kind.into(), input.counted()));
    }
    let connection = Bytes::of(&stream);
    while let Ok(message) = Message::receive(&connection) {
        let _ = message.name();
        if let Message::Failure(observation) = &message {
            passed_on(observation);
        }
        let again = match message.encode() {
            Ok(frame) => frame,
            // JSON may be longer when it is written by us: numbers with an exponent.
            Err(_) => continue,
        };
        let connection = Bytes::of(&again);
        match Message::receive(&connection) {
            Ok(read) => assert_eq!(read, message),
            Err(error) => panic!("{message:?} does not read back: {error}"),
        }
    }
}

/// What a peer says of its failure reaches the user: as text that cannot steer a terminal, and as the
/// cause of this side's own failure, in JSON that clients can read.
fn passed_on(observation: &Observation) {
    let told = control::output::explain(observation);
    assert!(
        told.chars().all(|c| c == '\n' || !c.is_control()),
        "{told:?}"
    );
    assert!(told.len() < 64 << 10, "{} bytes are told", told.len());
    let whole = Observation::new(Side::Source, "migration.failed", "it failed")
        .caused_by(Observation::new(Side::Source, "migration.peer", "it says"))
        .caused_by(observation.clone());
    let report = Report {
        error: Some(whole),
        ..Report::default()
    };
    let event = serde_json::to_string(&Event::Failed(report)).unwrap();
    if let Err(error) = serde_json::from_str::<Event>(&event) {
        panic!("clients cannot read the failure: {error}");
    }
}

/// Two blocks of a disk.
const BLOCKS: SomeBlocks = SomeBlocks {
    volume: 0,
    first: 64,
    bits: 0b101,
};

/// Every message of the protocol.
pub(super) fn every_message() -> Vec<Message> {
    let cause = Observation::new(Side::Destination, "disk.open", "no such file");
    let failure = Observation::new(Side::Destination, "migration.failed", "it failed")
        .in_phase("prepare")
        .caused_by(cause);
    vec![
        Message::Welcome(Welcome {
            version: 2,
            token: [7; 16],
            host: Some(HostId([3; 16])),
            capabilities: None,
            placed: None,
        }),
        Message::Negotiate(Box::new(negotiate(1))),
        Message::Negotiated(Negotiated::default()),
        Message::Prepare,
        Message::Prepared(Prepared {
            journal_ms: 0.25,
            hash_bytes_per_s: None,
            disks: vec!["data".into()],
            kept_disks: vec![0],
        }),
        Message::Extents(Extents {
            extents: vec![(0, 8192), (1 << 32, 4096)],
        }),
        Message::PassPlaced(PassPlaced {
            pass: 1,
            flush_us: None,
        }),
        Message::LastPass(LastPass {
            pass: 1,
            saved: None,
            run_state: None,
            disks: Some("{}".into()),
        }),
        Message::State(vec![1, 2, 3]),
        Message::Ready(Ready {
            digest: Some("nh64:0000000000000000".into()),
            disks_digest: None,
            whole_disks: Vec::new(),
            load_ms: 1.5,
        }),
        Message::Commit,
        Message::Committed(Committed {
            journal_ms: 0.5,
            start_ms: 0.125,
            warnings: vec![Observation::new(
                Side::Destination,
                "machine.announce",
                "silent",
            )],
        }),
        Message::Finish,
        Message::Failure(Box::new(failure)),
        Message::Ping(1),
        Message::Pong(u64::MAX),
        Message::Resolution(Answer {
            resolution: Resolution::Ran,
            host: Some(HostId([3; 16])),
        }),
        Message::PlanEnd,
        Message::BlockDigests(BlockDigests {
            of: BLOCKS,
            digests: vec![[7; 16]; 2],
        }),
        Message::BlocksPresent(BlocksPresent(BLOCKS)),
    ]
}

/// What a source wants of a destination: a machine of 16 pages below and 16 above 4 GiB.
pub(super) fn negotiate(streams: u8) -> Negotiate {
    let region = |gpa| RamRegion { gpa, len: 16 << 12 };
    Negotiate {
        machine: MachineDescription {
            name: "guest".into(),
            ram: vec![region(0), region(4 << 30)],
            machine: "{}".into(),
            disks: None,
        },
        run_state: RunState::Running,
        volumes: Vec::new(),
        reconnect_ms: None,
        streams,
        verify: Verify::Stream,
        intent: Intent::Migrate,
        state: None,
    }
}

/// A message as targets take it: its kind, then its body with its length.
pub(super) fn as_input(message: &Message) -> Vec<u8> {
    let frame = message.encode().unwrap_or_default();
    let kind = [kind_of(&frame) as u8];
    [&kind[..], &crate::input::counted(&frame[CONTROL_LEN..])].concat()
}

fn control_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = every_message()
        .iter()
        .map(|message| [&[0][..], &as_input(message)].concat())
        .collect();
    let frames: Vec<u8> = [Message::Commit, Message::Ping(7)]
        .iter()
        .flat_map(|message| message.encode().unwrap_or_default())
        .collect();
    seeds.push([&[1][..], &frames].concat());
    // What a hostile peer may call a failure: a long chain, and texts that steer terminals.
    let link = |n| Observation::new(Side::Source, format!("a.\u{1b}{n}"), "\u{7}").in_phase("\n");
    let deep = (1..62).fold(link(0), |cause, n| link(n).caused_by(cause));
    let hostile = frame(14, &serde_json::to_vec(&deep).unwrap_or_default());
    seeds.push([&[1][..], &hostile].concat());
    seeds
}

/// The ranges of a batch that is whole; none of any other.
fn ranges_of<R: BatchRange>(
    header: BatchHeader,
    rest: &[u8],
    count: usize,
    payload: u64,
) -> Vec<R> {
    use zerocopy::FromBytes;

    assert!(count <= MAX_RANGES && payload <= MAX_PAYLOAD);
    let Ok((table, _)) = <[R]>::ref_from_prefix_with_elems(rest, count) else {
        return Vec::new();
    };
    if header.verify(table).is_err() {
        return Vec::new();
    }
    assert_eq!(table.iter().map(R::payload).sum::<u64>(), payload);
    table.to_vec()
}

fn batch(bytes: &[u8]) {
    use zerocopy::FromBytes;

    let mut input = Input::new(bytes);
    let sealed = input.u8() & 1 == 0;
    let mut whole = input.rest().to_vec();
    if sealed {
        seal(&mut whole, BATCH_CHECK);
    }
    let Ok((header, rest)) = BatchHeader::read_from_prefix(&whole) else {
        return;
    };
    let Ok(kind) = header.kind() else { return };
    match kind {
        BatchKind::PassEnd => drop(header.verify::<PageRange>(&[])),
        BatchKind::Pages { ranges, payload } => {
            for range in ranges_of::<PageRange>(header, rest, ranges, payload) {
                if let Ok(encoding) = range.encoding() {
                    let again = PageRange::new(range.gpa(), range.pages() as u32, encoding);
                    assert_eq!(
                        (again.gpa(), again.pages(), again.payload()),
                        (range.gpa(), range.pages(), range.payload())
                    );
                }
            }
        }
        BatchKind::Blocks { ranges, payload } => {
            for range in ranges_of::<BlockRange>(header, rest, ranges, payload) {
                if let (Ok(encoding), Some(bytes)) = (range.encoding(), range.bytes()) {
                    let again = BlockRange::new(range.volume(), bytes.clone(), encoding);
                    assert_eq!(
                        (again.bytes(), again.payload()),
                        (Some(bytes), range.payload())
                    );
                }
            }
        }
    }
}

fn batch_seeds() -> Vec<Vec<u8>> {
    use zerocopy::IntoBytes;

    let ranges = [
        PageRange::new(0, 3, Encoding::Raw),
        PageRange::new(4 << 30, 200, Encoding::Zero),
    ];
    let pages = BatchHeader::of(1, &ranges);
    let pages = [&[0][..], pages.as_bytes(), ranges.as_bytes()].concat();
    let end = [&[0][..], BatchHeader::pass_end(1).as_bytes()].concat();
    let blocks = [
        BlockRange::new(0, 0..8192, BlockEncoding::Raw),
        BlockRange::new(1, 1 << 30..(1 << 30) + 512, BlockEncoding::Zero),
    ];
    let head = BatchHeader::of(2, &blocks);
    let blocks = [&[0][..], head.as_bytes(), blocks.as_bytes()].concat();
    vec![pages, end, blocks]
}
