//! Level 1's end of the sessions, held open across migrations.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::clocks::Bounds;
use super::frames::{Announcements, Frames, Largest};
use super::pattern::{MOST, Pattern};
use super::server::{ANSWER, BETWEEN_SENDS, Kind, PIECE, REQUEST};
use super::sys::Clock;

/// Time from an answer to the next request, as of somebody who types fast.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(50);
/// A session that stands still for so long is lost.
const SILENCE: Duration = Duration::from_secs(60);
/// An answer that takes this long is told with its time.
const SLOW_NS: u64 = 250_000_000;
/// Slow answers that are told of a stage.
const MOST_SLOW: usize = 16;
/// Extension of the file, beside that of the stage, with the last stage in which all sessions went on.
const HEARD: &str = "heard";
/// Content of the stage file that ends the sessions.
const END: &str = "end";

/// What a stage of the scenario saw; a stage is what the scenario names it.
#[derive(Debug)]
pub struct Stage {
    name: String,
    requests: u64,
    longest_ns: u64,
    /// When slow answers came, and how long they took, in milliseconds of this machine's clock.
    slow: Vec<(u64, u64)>,
    monotonic: Bounds,
    wall: Bounds,
    /// Bytes of the bulk sessions when it began.
    before: [u64; 2],
    /// That all sessions have gone on in it has been told.
    is_heard: bool,
}

impl Stage {
    fn new(name: String, bulk: &Bulk) -> Self {
        Self {
            name,
            requests: 0,
            longest_ns: 0,
            slow: Vec::new(),
            monotonic: Bounds::default(),
            wall: Bounds::default(),
            before: bulk.bytes(),
            is_heard: false,
        }
    }

    /// Whether all sessions have gone on in it: there was an answer, and bytes went both ways.
    fn has_gone_on(&self, bulk: &Bulk) -> bool {
        let mut bytes = self.before.iter().zip(bulk.bytes());
        self.requests > 0 && bytes.all(|(before, now)| *before < now)
    }

    /// The fields: requests answered, the longest wait for an answer, slow answers, and between which bounds the
    /// guest's clocks were ahead of this machine's, in nanoseconds. Bytes, largest frames and the guest's
    /// announcements are those since the beginning.
    fn tell(&self, bulk: &Bulk) {
        let line = json!({
            "stage": self.name,
            "requests": self.requests,
            "longest_ms": self.longest_ns / 1_000_000,
            "slow_at_ms": self.slow,
            "monotonic_ahead_ns": [self.monotonic.low, self.monotonic.high],
            "wall_ahead_ns": [self.wall.low, self.wall.high],
            "to_guest": bulk.to_guest.load(Relaxed),
            "from_guest": bulk.from_guest.load(Relaxed),
            "largest_frame_to_guest": bulk.largest.sent.load(Relaxed),
            "largest_frame_from_guest": bulk.largest.received.load(Relaxed),
            "announced": bulk.announced.load(Relaxed),
        });
        println!("session: {line}");
    }
}

/// Bytes of the bulk sessions so far.
#[derive(Debug, Default)]
struct Bulk {
    to_guest: AtomicU64,
    from_guest: AtomicU64,
    largest: Largest,
    announced: AtomicU64,
    enough: AtomicBool,
}

impl Bulk {
    fn bytes(&self) -> [u64; 2] {
        [self.to_guest.load(Relaxed), self.from_guest.load(Relaxed)]
    }
}

/// Holds an interactive session and a bulk session in each direction, until the file `stage` says that
/// the scenario ends.
///
/// # Errors
/// When a session broke or carried a wrong byte; told by then.
pub fn run(address: &str, stage: &Path, taps: &[&str]) -> Result<(), String> {
    let bulk = &Bulk::default();
    let failed = |error: io::Error| format!("watch {taps:?}: {error}");
    let frames = Frames::of(taps).map_err(failed)?;
    let announcements = Announcements::begin().map_err(failed)?;
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            while !bulk.enough.load(Relaxed) {
                frames.look(&bulk.largest);
            }
        });
        scope.spawn(|| {
            while !bulk.enough.load(Relaxed) {
                announcements.look(&bulk.announced);
            }
        });
        let to_guest = scope.spawn(|| send(address, bulk));
        let from_guest = scope.spawn(|| receive(address, bulk));
        let interactive = ask(address, stage, bulk);
        bulk.enough.store(true, Relaxed);
        let bulks = [to_guest, from_guest].map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err("a mistake in this program".to_owned()))
        });
        let [to_guest, from_guest] = bulks;
        [
            ("interactive", interactive),
            ("to the guest", to_guest),
            ("from the guest", from_guest),
        ]
    });
    let mut right = true;
    for (session, ended) in ended {
        if let Err(reason) = ended {
            println!("session: FAILED: {session}: {reason}");
            right = false;
        }
    }
    if right {
        println!("session: all ended well");
        return Ok(());
    }
    Err("a session failed".to_owned())
}

fn connect(address: &str, kind: Kind) -> io::Result<TcpStream> {
    let began = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            // The guest may not have come so far.
            Err(_) if began.elapsed() < SILENCE => thread::sleep(BETWEEN_REQUESTS),
            result => break result?,
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(&[kind.byte()])?;
    Ok(stream)
}

fn told(error: io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing for {SILENCE:?}"),
        _ => error.to_string(),
    }
}

fn ask(address: &str, stage: &Path, bulk: &Bulk) -> Result<(), String> {
    let mut stream = connect(address, Kind::Interactive).map_err(told)?;
    let mut seen = Stage::new(String::new(), bulk);
    let mut padding = Pattern::new(Kind::Interactive.seed());
    for number in 0_u64.. {
        let name = fs::read_to_string(stage).unwrap_or_default();
        let name = name.trim();
        if name != seen.name {
            if seen.requests > 0 {
                seen.tell(bulk);
            }
            seen = Stage::new(name.to_owned(), bulk);
        }
        if name == END || bulk.enough.load(Relaxed) {
            break;
        }
        let mut request = [0; REQUEST];
        request[..8].copy_from_slice(&number.to_le_bytes());
        request[8..].copy_from_slice(padding.next(REQUEST - 8));
        padding.advance(REQUEST - 8);
        round_trip(&mut stream, &request, &mut seen)?;
        if !seen.is_heard && seen.has_gone_on(bulk) {
            seen.is_heard = true;
            fs::write(stage.with_extension(HEARD), &seen.name).map_err(told)?;
        }
        thread::sleep(BETWEEN_REQUESTS);
    }
    stream.shutdown(Shutdown::Write).map_err(told)?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("the guest sent more than was asked for".to_owned()),
        Err(error) => Err(told(error)),
    }
}

fn round_trip(stream: &mut TcpStream, request: &[u8], seen: &mut Stage) -> Result<(), String> {
    let clocks = || (Clock::Monotonic.now(), Clock::Wall.now());
    let before = clocks();
    stream.write_all(request).map_err(told)?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).map_err(told)?;
    let after = clocks();
    if answer[..REQUEST] != *request {
        return Err(format!("{request:x?} was answered with {answer:x?}"));
    }
    let at = |offset: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&answer[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    };
    seen.requests += 1;
    let took = after.0 - before.0;
    seen.longest_ns = seen.longest_ns.max(took);
    if took > SLOW_NS && seen.slow.len() < MOST_SLOW {
        seen.slow.push((after.0 / 1_000_000, took / 1_000_000));
    }
    let monotonic = Bounds::of(at(REQUEST), before.0, after.0);
    let wall = Bounds::of(at(REQUEST + 8), before.1, after.1);
    seen.monotonic = seen.monotonic.and(monotonic);
    seen.wall = seen.wall.and(wall);
    Ok(())
}

fn send(address: &str, bulk: &Bulk) -> Result<(), String> {
    let mut stream = connect(address, Kind::ToGuest).map_err(told)?;
    let mut pattern = Pattern::new(Kind::ToGuest.seed());
    let carry = |stream: &mut TcpStream, pattern: &mut Pattern| {
        while !bulk.enough.load(Relaxed) {
            stream.write_all(pattern.next(PIECE)).map_err(told)?;
            pattern.advance(PIECE);
            bulk.to_guest.store(pattern.position(), Relaxed);
            thread::sleep(BETWEEN_SENDS);
        }
        stream.shutdown(Shutdown::Write).map_err(told)?;
        let mut taken = [0; 8];
        stream.read_exact(&mut taken).map_err(told)?;
        Ok(u64::from_le_bytes(taken))
    };
    let taken = carry(&mut stream, &mut pattern).inspect_err(|_: &String| give_up(bulk))?;
    if taken != pattern.position() {
        return Err(format!("{taken} of {} bytes arrived", pattern.position()));
    }
    Ok(())
}

fn receive(address: &str, bulk: &Bulk) -> Result<(), String> {
    let mut stream = connect(address, Kind::FromGuest).map_err(told)?;
    let mut pattern = Pattern::new(Kind::FromGuest.seed());
    let mut piece = vec![0; MOST];
    let mut said_enough = false;
    loop {
        if !said_enough && bulk.enough.load(Relaxed) {
            stream.shutdown(Shutdown::Write).map_err(told)?;
            said_enough = true;
        }
        let read = stream.read(&mut piece).map_err(told);
        match read.inspect_err(|_| give_up(bulk))? {
            0 if said_enough => return Ok(()),
            0 => {
                give_up(bulk);
                return Err("the guest ended it".to_owned());
            }
            length => pattern
                .compare(&piece[..length])
                .inspect_err(|_| give_up(bulk))?,
        }
        bulk.from_guest.store(pattern.position(), Relaxed);
    }
}

/// One broken session ends them all: the scenario hears of it now rather than at its end.
fn give_up(bulk: &Bulk) {
    bulk.enough.store(true, Relaxed);
}
