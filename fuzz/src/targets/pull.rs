//! Both ends of a pull, each with a peer that says anything.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use migration::pull::{
    Class, Presence, PullClient, PullServer, PullSource, PulledVolume, Units, client, server,
};
use migration::transport::{Connect, Connection, Listen, Patience, Piece, Within, gather, scatter};
use migration::vm::VmResult;
use migration::wire::hello::{Hello, Role};
use migration::wire::pull::{End, Frame, Gone, PULL_LEN, PULL_MAGIC, PullHeader, VolumeList};
use migration::{MigrationId, PullSecret};
use zerocopy::IntoBytes;

use super::wire::seal;
use crate::input::counted;
use crate::{Input, Memory, Target};

/// What a client says to a server.
pub(super) const SERVER: Target = Target {
    name: "pull-server",
    run: serve,
    seeds: server_seeds,
    words: &["vmmQ"],
    longest: 1024,
    memory: MEMORY,
};

/// What a server says to a client.
pub(super) const CLIENT: Target = Target {
    name: "pull-client",
    run: ask,
    seeds: client_seeds,
    words: &["vmmQ", "\"volumes\":[", "\"unit\":65536"],
    longest: 1024,
    memory: MEMORY,
};

/// An answer is of 2 MiB at most, and is held in two places.
const MEMORY: Memory = Memory {
    base: 8 << 20,
    per_byte: 4 << 10,
};

const ID: MigrationId = MigrationId([2; 16]);
const SECRET: PullSecret = PullSecret([8; 16]);
const UNIT: u32 = 4096;
const SIZE: u64 = 9 * UNIT as u64 + 512;
const CHECK: usize = PULL_LEN - 8;
/// Longest that anything here may wait for.
const PATIENCE: Duration = Duration::from_secs(10);

fn volume() -> PulledVolume {
    PulledVolume {
        id: "d".into(),
        size: SIZE,
        unit: UNIT,
    }
}

/// A frame as an input describes it; its check is right unless the input wants another.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let shape = input.u8();
    let mut frame = PULL_MAGIC.to_le_bytes().to_vec();
    frame.extend_from_slice(&u16::from(input.u8()).to_le_bytes());
    frame.extend_from_slice(&u16::from(input.u8()).to_le_bytes());
    frame.extend_from_slice(&u32::from(input.u8()).to_le_bytes());
    frame.extend_from_slice(&u32::from(input.u16()).to_le_bytes());
    let first = if shape & 2 == 0 {
        input.u8().into()
    } else {
        input.u64()
    };
    frame.extend_from_slice(&first.to_le_bytes());
    frame.extend_from_slice(&u32::from(input.u16()).to_le_bytes());
    let payload = input.counted();
    let len = if shape & 4 == 0 {
        payload.len() as u32
    } else {
        input.u32()
    };
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&[0; 8]);
    frame.extend_from_slice(payload);
    if shape & 1 == 0 {
        seal(&mut frame, CHECK);
    }
    frame
}

/// The input that [`frame`] makes a frame of.
fn described(frame: &Frame, payload: &[u8]) -> Vec<u8> {
    let bytes = PullHeader::new(frame, payload).as_bytes().to_vec();
    // Of each number what the input has of it: the header is little-endian.
    let mut input = vec![0, bytes[4], bytes[6], bytes[8]];
    input.extend_from_slice(&bytes[12..14]);
    input.push(bytes[16]);
    input.extend_from_slice(&bytes[24..26]);
    input.extend(counted(payload));
    input
}

/// A connection whose peer has said all that it will.
struct Said {
    bytes: Mutex<(Vec<u8>, usize)>,
    /// How much can be read before this end has said anything.
    first: usize,
    spoke: AtomicBool,
    heard: Mutex<Vec<Vec<u8>>>,
    ended: AtomicBool,
    over: Sender<()>,
}

impl Said {
    fn new(bytes: Vec<u8>, first: usize, over: Sender<()>) -> Self {
        Self {
            bytes: Mutex::new((bytes, 0)),
            first,
            spoke: AtomicBool::new(false),
            heard: Mutex::default(),
            ended: AtomicBool::new(false),
            over,
        }
    }

    fn fill(&self, out: &mut [u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, at) = &mut *bytes;
        match said.get(*at..*at + out.len()) {
            Some(next) if !self.ended.load(Ordering::SeqCst) => {
                out.copy_from_slice(next);
                *at += out.len();
                Ok(())
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// As its other end and a test have it.
struct Shared(Arc<Said>);

impl Connection for Shared {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        let said = &self.0;
        if said.ended.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let frame = gather(bytes, pieces)?;
        // The first request is what a script of answers waits for.
        if frame.starts_with(b"vmmQ") && frame.get(4) == Some(&3) {
            said.spoke.store(true, Ordering::SeqCst);
        }
        said.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(frame);
        Ok(())
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        scatter(bytes, pieces, |part| self.0.fill(part))
    }

    fn send_within(&self, bytes: &[u8], _: Within) -> io::Result<()> {
        self.send(bytes)
    }

    fn receive_within(&self, bytes: &mut [u8], _: Within) -> io::Result<()> {
        self.receive(bytes)
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        let said = &self.0;
        let until = Instant::now() + timeout;
        loop {
            let at = said.bytes.lock().unwrap_or_else(PoisonError::into_inner).1;
            let may_read = at < said.first || said.spoke.load(Ordering::SeqCst);
            if may_read || said.ended.load(Ordering::SeqCst) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn set_io_timeout(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
        let _ = self.0.over.send(());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[derive(Default)]
struct Store {
    released: AtomicBool,
}

impl PullSource for Store {
    fn volume(&self) -> PulledVolume {
        volume()
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        assert!(range.start < range.end && range.end <= SIZE);
        Ok(vec![range])
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        assert!(offset + into.len() as u64 <= SIZE);
        into.fill((offset / u64::from(UNIT)) as u8);
        Ok(())
    }

    fn release(&self) -> VmResult<()> {
        self.released.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

struct One(Mutex<Option<Shared>>);

impl One {
    fn take(&self) -> Option<Box<dyn Connection>> {
        let mut one = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        one.take().map(|one| Box::new(one) as _)
    }
}

impl Listen for One {
    fn accept(&self, _: Duration) -> io::Result<Option<Box<dyn Connection>>> {
        let next = self.take();
        if next.is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(next)
    }

    fn address(&self) -> String {
        "here".into()
    }
}

impl Connect for One {
    fn connect(&self, _: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        self.take()
            .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn address(&self) -> String {
        "there".into()
    }
}

fn serve(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let hello = match input.u8() {
        0 => input.bytes(80).to_vec(),
        lane => Hello::new(Role::Pull { lane: lane.into() }, ID, SECRET.0)
            .encode()
            .to_vec(),
    };
    let mut said = hello;
    let mut tells = false;
    while !input.is_empty() {
        let frame = frame(&mut input);
        tells |= frame[4] == 8;
        said.extend(frame);
    }
    let (over, is_over) = channel();
    let connection = Arc::new(Said::new(said, usize::MAX, over));
    let listen = One(Mutex::new(Some(Shared(connection.clone()))));
    let store = Arc::<Store>::default();
    let options = server::Options {
        linger: Duration::ZERO,
        ..server::Options::default()
    };
    let server = PullServer::new(vec![store.clone()], ID, SECRET, options);
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve(&listen).map(drop));
        let ended = is_over.recv_timeout(PATIENCE);
        server.stop();
        assert!(ended.is_ok(), "the connection does not end");
    });
    assert!(tells || !store.is_released(), "nobody has said so");
    let heard = connection.heard.lock().expect("no panic");
    for frame in heard.iter() {
        answered(frame);
    }
}

/// What a server says keeps to the rules, and is what it has.
fn answered(bytes: &[u8]) {
    let (header, payload) = bytes.split_at(PULL_LEN);
    let header: [u8; PULL_LEN] = header.try_into().expect("a header");
    let header: PullHeader = zerocopy::transmute!(header);
    let frame = header.frame(End::Server).expect("a frame of a server");
    header.verify(payload).expect("it is whole");
    if let Frame::Answer { units, zeroes, .. } = frame {
        let mut rest = payload;
        for unit in units.range().expect("units") {
            if zeroes & 1 << (unit - units.first) != 0 {
                assert_eq!(unit as u8, 0);
                continue;
            }
            let (content, after) = rest.split_at(volume().len_of(unit) as usize);
            assert!(content.iter().all(|byte| *byte == unit as u8));
            rest = after;
        }
        assert!(rest.is_empty());
    }
}

/// Nothing is here.
#[derive(Default)]
struct Nothing(AtomicUsize);

impl Presence for Nothing {
    fn is_present(&self, _: usize, unit: u64) -> bool {
        assert!(unit < volume().units());
        self.0.fetch_add(1, Ordering::Relaxed);
        false
    }
}

fn ask(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let list = VolumeList {
        volumes: vec![volume()],
    };
    let list = list.encode().expect("a list");
    let mut said = Vec::new();
    if input.u8() > 0 {
        let len = list.len() as u32;
        said.extend_from_slice(PullHeader::new(&Frame::Volumes { len }, &list).as_bytes());
        said.extend_from_slice(&list);
    } else {
        said.extend(frame(&mut input));
    }
    let first = said.len();
    while !input.is_empty() {
        said.extend(frame(&mut input));
    }
    let (over, is_over) = channel();
    let connection = Arc::new(Said::new(said, first, over));
    let one = One(Mutex::new(Some(Shared(connection))));
    let options = client::Options {
        lanes: 1,
        ..client::Options::default()
    };
    let presence = Arc::<Nothing>::default();
    let asks = PullClient::start(
        Box::new(one),
        (ID, SECRET),
        vec![volume()],
        presence,
        options,
    );
    let asks = asks.expect("a thread");
    let until = Instant::now() + PATIENCE;
    let mut ended = false;
    while !ended {
        assert!(Instant::now() < until, "the connection does not end");
        let units = Units {
            volume: 0,
            first: 8,
            count: 2,
        };
        let mut into = vec![0x55; UNIT as usize + 512];
        if asks.lost().is_none() && asks.fetch(units, Class::Demand, &mut into).is_err() {
            assert!(into.iter().all(|byte| *byte == 0x55));
        }
        ended = is_over.recv_timeout(Duration::from_micros(100)).is_ok();
    }
}

fn units(first: u64, count: u32) -> Units {
    Units {
        volume: 0,
        first,
        count,
    }
}

fn server_seeds() -> Vec<Vec<u8>> {
    let request = |number, class| Frame::Request {
        number,
        units: units(3, 4),
        class,
    };
    let say = |frames: &[(Frame, &[u8])]| {
        let frames = frames.iter().flat_map(|(f, payload)| described(f, payload));
        [1].into_iter().chain(frames).collect::<Vec<u8>>()
    };
    let ask = Frame::AskData {
        number: 7,
        units: units(0, 10),
    };
    vec![
        say(&[
            (Frame::Present(units(0, 10)), &[0xff, 1]),
            (request(1, Class::Demand), &[]),
            (request(2, Class::Background), &[]),
        ]),
        say(&[(ask, &[]), (Frame::Ping { number: 3 }, &[])]),
        say(&[(
            Frame::AskHeld {
                number: 8,
                units: units(0, 10),
            },
            &[],
        )]),
        say(&[
            (Frame::Finished { volume: 0 }, &[]),
            (request(9, Class::Demand), &[]),
        ]),
    ]
}

fn client_seeds() -> Vec<Vec<u8>> {
    let say = |frames: &[(Frame, &[u8])]| {
        let frames = frames.iter().flat_map(|(f, payload)| described(f, payload));
        [1].into_iter().chain(frames).collect::<Vec<u8>>()
    };
    let answer = Frame::Answer {
        number: 0,
        units: units(8, 2),
        zeroes: 1,
        len: 512,
    };
    let why = Gone::Unreadable;
    vec![
        say(&[(answer, &[9; 512]), (Frame::Gone { number: 1, why }, &[])]),
        say(&[(Frame::Pong { number: 1 }, &[])]),
        say(&[(Frame::Released { volume: 0 }, &[])]),
    ]
}
