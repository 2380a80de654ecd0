//! Peers played by hand: what they say, and when, is up to the test.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use migration::journal::MemoryJournal;
use migration::observation::{Observation, Side};
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, MemoryConnect, MemoryListen};
use migration::transport::{Connect, Connection, Listen, Patience};
use migration::vm::{MachineDescription, RunState};
use migration::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, RANGE_LEN};
use migration::wire::capabilities::Capabilities;
use migration::wire::control::{
    Answer, BlockDigests, BlocksLeft, BlocksPresent, Committed, Extents, Intent, LastPass, Message,
    Negotiate, Negotiated, PassPlaced, Prepared, Ready, Resolution, SomeBlocks, Welcome,
};
use migration::wire::hello::{HELLO_LEN, Hello, Role};
use migration::wire::kind::Kind;
use migration::{MigrationId, Outcome, destination};
use zerocopy::{FromBytes, IntoBytes};

pub const PATIENCE: Patience<'static> = Patience {
    timeout: Duration::from_secs(5),
    give_up: &|| false,
};

/// A migration that a played destination can follow: it has one stream, and nobody compares digests.
pub fn one_stream_unverified() -> MigrateRequest {
    MigrateRequest {
        streams: Some(1),
        verify: Verify::Off,
        ..MigrateRequest::new("unix:/there")
    }
}

/// Says `message`; whether it could be sent. The peer may have hung up, which is what tests are about.
pub fn say(connection: &dyn Connection, message: &Message) -> bool {
    connection.send(&message.encode().unwrap()).is_ok()
}

/// The next message that is no keep-alive.
pub fn hear(connection: &dyn Connection) -> Option<Message> {
    loop {
        match Message::receive(connection).ok()? {
            Message::Ping(number) => {
                say(connection, &Message::Pong(number));
            }
            Message::Pong(_) => {}
            message => return Some(message),
        }
    }
}

/// Says nothing for a while but that it lives.
pub fn live(connection: &dyn Connection, time: Duration) {
    let until = std::time::Instant::now() + time;
    while std::time::Instant::now() < until {
        if connection
            .wait_readable(Duration::from_millis(10))
            .is_ok_and(|is| is)
            && let Ok(Message::Ping(number)) = Message::receive(connection)
        {
            say(connection, &Message::Pong(number));
        }
    }
}

/// Every kind of frames.
pub fn kinds() -> impl Iterator<Item = Kind> {
    (1..).map_while(Kind::of_number)
}

/// A message of this kind.
pub fn message_of(kind: Kind) -> Message {
    match kind {
        Kind::Welcome => Message::Welcome(welcome(1)),
        Kind::Negotiate => Message::Negotiate(Box::new(wanted())),
        Kind::Negotiated => Message::Negotiated(Negotiated::default()),
        Kind::Prepare => Message::Prepare,
        Kind::Prepared => Message::Prepared(Prepared {
            journal_ms: 0.5,
            hash_bytes_per_s: None,
            disks: Vec::new(),
            kept_disks: Vec::new(),
        }),
        Kind::Extents => Message::Extents(Extents {
            extents: vec![(0, 8192)],
        }),
        Kind::PassPlaced => Message::PassPlaced(PassPlaced {
            pass: 1,
            flush_us: None,
        }),
        Kind::LastPass => Message::LastPass(LastPass {
            pass: 1,
            saved: None,
            run_state: None,
            disks: None,
        }),
        Kind::State => Message::State(vec![1; 100]),
        Kind::Ready => Message::Ready(Ready {
            digest: None,
            disks_digest: None,
            whole_disks: Vec::new(),
            load_ms: 1.0,
        }),
        Kind::Commit => Message::Commit,
        Kind::Committed => Message::Committed(Committed {
            journal_ms: 0.5,
            start_ms: 0.5,
            warnings: Vec::new(),
        }),
        Kind::Finish => Message::Finish,
        Kind::Failure => {
            let why = Observation::new(Side::Client, "test.failure", "it plays");
            Message::Failure(Box::new(why))
        }
        Kind::Ping => Message::Ping(7),
        Kind::Pong => Message::Pong(7),
        Kind::Resolution => Message::Resolution(Answer {
            resolution: Resolution::Ran,
            host: None,
        }),
        Kind::PlanEnd => Message::PlanEnd,
        Kind::Forwarded => Message::Forwarded(vec![1; 100]),
        Kind::BlocksLeft => Message::BlocksLeft(BlocksLeft {
            volume: 0,
            first: 0,
            words: vec![1],
        }),
        Kind::BlockDigests => Message::BlockDigests(BlockDigests {
            of: first_block(),
            digests: vec![[1; 16]],
        }),
        Kind::BlocksPresent => Message::BlocksPresent(BlocksPresent(first_block())),
    }
}

/// The first block of the first disk.
fn first_block() -> SomeBlocks {
    SomeBlocks {
        volume: 0,
        first: 0,
        bits: 1,
    }
}

pub fn welcome(version: u16) -> Welcome {
    Welcome {
        version,
        token: [9; 16],
        // It is played once, on one link.
        capabilities: (version >= 4)
            .then(|| Capabilities::OURS.bits() & !Capabilities::NEW_LINK.bits()),
        placed: None,
        host: (version > 1).then_some(migration::HostId([3; 16])),
    }
}

pub fn wanted() -> Negotiate {
    Negotiate {
        machine: MachineDescription {
            name: "hostile".into(),
            ram: super::layout(64),
            machine: "{}".into(),
            disks: None,
        },
        run_state: RunState::Running,
        streams: 1,
        verify: Verify::Stream,
        intent: Intent::Migrate,
        state: None,
        volumes: Vec::new(),
        reconnect_ms: None,
    }
}

/// How far a played source goes as a good one would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Welcomed,
    Negotiated,
    /// The machine is built, and the data connections are open.
    Prepared,
    /// The state is sent.
    Stopped,
    /// All is loaded.
    Loaded,
}

impl Point {
    pub const ALL: [Self; 5] = [
        Self::Welcomed,
        Self::Negotiated,
        Self::Prepared,
        Self::Stopped,
        Self::Loaded,
    ];
}

/// A played source that has come to a point.
pub struct PlayedSource {
    pub control: Box<dyn Connection>,
    /// What the welcome gave out.
    pub token: [u8; 16],
    pub data: Vec<Box<dyn Connection>>,
}

impl PlayedSource {
    /// Goes as far as `point`; `None` when the destination does not want it.
    ///
    /// # Panics
    /// When the destination says what it should not.
    pub fn at(connect: &MemoryConnect, negotiate: Negotiate, point: Point) -> Option<Self> {
        Self::telling(Capabilities::OURS, connect, negotiate, point)
    }

    /// The same, of one that tells these capabilities.
    ///
    /// # Panics
    /// As there.
    pub fn telling(
        capabilities: Capabilities,
        connect: &MemoryConnect,
        negotiate: Negotiate,
        point: Point,
    ) -> Option<Self> {
        let streams = u16::from(negotiate.streams);
        let id = MigrationId::random().unwrap();
        let control = connect.connect(PATIENCE).unwrap();
        let hello = Hello {
            capabilities,
            ..Hello::new(Role::Control, id, [0; 16])
        };
        control.send(&hello.encode()).unwrap();
        let Some(Message::Welcome(welcome)) = hear(&*control) else {
            panic!("no welcome")
        };
        let mut this = Self {
            control,
            token: welcome.token,
            data: Vec::new(),
        };
        if point >= Point::Negotiated {
            this.say(&Message::Negotiate(Box::new(negotiate)));
            if !matches!(hear(&*this.control), Some(Message::Negotiated(_))) {
                return None;
            }
        }
        if point >= Point::Prepared {
            this.say(&Message::Prepare);
            let Some(Message::Prepared(_)) = hear(&*this.control) else {
                panic!("not prepared")
            };
            let open = |stream| {
                let data = connect.connect(PATIENCE).unwrap();
                let hello = Hello::new(Role::Data { stream }, id, welcome.token);
                data.send(&hello.encode()).unwrap();
                data
            };
            this.data = (0..streams).map(open).collect();
        }
        if point >= Point::Stopped {
            this.say(&message_of(Kind::State));
        }
        if point >= Point::Loaded {
            this.end_pass();
        }
        Some(this)
    }

    /// Goes from [`Point::Prepared`] to [`Point::Loaded`].
    pub fn load(&self) {
        self.say(&message_of(Kind::State));
        self.end_pass();
    }

    fn end_pass(&self) {
        for data in &self.data {
            let end = BatchHeader::pass_end(1);
            data.send(end.as_bytes()).unwrap();
        }
        self.say(&message_of(Kind::LastPass));
        let placed = hear(&*self.control);
        assert!(matches!(placed, Some(Message::PassPlaced(_))), "{placed:?}");
        let ready = hear(&*self.control);
        assert!(matches!(ready, Some(Message::Ready(_))), "{ready:?}");
    }

    pub fn say(&self, message: &Message) -> bool {
        say(&*self.control, message)
    }

    /// Waits until the destination has hung up.
    pub fn see_out(&self) {
        while hear(&*self.control).is_some() {}
    }
}

/// What a played destination says to a message; `None` hangs up.
pub type Says<'a> = &'a (dyn Fn(&Message) -> Option<Vec<Message>> + Sync);

/// Plays a destination of `version` to a source with one stream. It takes pages and says that they are
/// placed; the rest is `answer`'s.
pub fn serve(listen: &MemoryListen, version: u16, answer: Says<'_>) {
    serve_slowly(listen, version, Duration::ZERO, answer);
}

/// The same, of one that takes `loading` for what comes after the last pass.
pub fn serve_slowly(listen: &MemoryListen, version: u16, loading: Duration, answer: Says<'_>) {
    let control = listen.accept(PATIENCE.timeout).unwrap().unwrap();
    let control = &*control;
    control.receive(&mut [0; HELLO_LEN]).unwrap();
    say(control, &Message::Welcome(welcome(version)));
    thread::scope(|scope| {
        while let Some(message) = hear(control) {
            if matches!(message, Message::LastPass(_)) {
                live(control, loading);
            }
            let Some(answers) = answer(&message) else {
                break;
            };
            for answer in answers {
                say(control, &answer);
            }
            if matches!(message, Message::Extents(_)) {
                scope.spawn(|| {
                    if let Some(data) = listen.accept(PATIENCE.timeout).unwrap() {
                        take_pages(&*data, control);
                    }
                });
            }
        }
        control.shutdown();
    });
}

/// Takes pages until the stream ends, and says when those of a pass are placed.
pub fn take_pages(data: &dyn Connection, control: &dyn Connection) {
    let mut hello = [0; HELLO_LEN];
    let mut header = [0; BATCH_LEN];
    if data.receive(&mut hello).is_err() {
        return;
    }
    while data.receive(&mut header).is_ok() {
        let header = BatchHeader::read_from_bytes(&header).unwrap();
        match header.kind().unwrap() {
            BatchKind::PassEnd => {
                let pass = header.pass();
                say(
                    control,
                    &Message::PassPlaced(PassPlaced {
                        pass,
                        flush_us: None,
                    }),
                );
            }
            BatchKind::Pages { ranges, payload } | BatchKind::Blocks { ranges, payload } => {
                let mut rest = vec![0; ranges * RANGE_LEN + payload as usize];
                if data.receive(&mut rest).is_err() {
                    return;
                }
            }
        }
    }
}

/// Stands between a source with one stream and a destination: passes on what either says, and what the destination says
/// on the control connection as `alter` makes it.
pub fn relay(
    listen: &MemoryListen,
    connect: &MemoryConnect,
    alter: &(dyn Fn(Message) -> Message + Sync),
) {
    let next = || {
        let here = listen.accept(PATIENCE.timeout).ok()??;
        let mut hello = [0; HELLO_LEN];
        here.receive(&mut hello).ok()?;
        let there = connect.connect(PATIENCE).ok()?;
        there.send(&hello).ok()?;
        Some((here, there))
    };
    let Some(control) = next() else { return };
    thread::scope(|scope| {
        scope.spawn(|| pass_messages(&*control.0, &*control.1, &|message| message));
        scope.spawn(|| pass_messages(&*control.1, &*control.0, alter));
        let Some((here, there)) = next() else { return };
        pass_batches(&*here, &*there);
        here.shutdown();
        there.shutdown();
    });
}

fn pass_messages(from: &dyn Connection, to: &dyn Connection, alter: &dyn Fn(Message) -> Message) {
    while let Ok(message) = Message::receive(from) {
        if !say(to, &alter(message)) {
            break;
        }
    }
    from.shutdown();
    to.shutdown();
}

fn pass_batches(from: &dyn Connection, to: &dyn Connection) {
    let mut header = [0; BATCH_LEN];
    while from.receive(&mut header).is_ok() {
        let mut bytes = header.to_vec();
        let header = BatchHeader::read_from_bytes(&header).unwrap();
        if let BatchKind::Pages { ranges, payload } | BatchKind::Blocks { ranges, payload } =
            header.kind().unwrap()
        {
            let mut rest = vec![0; ranges * RANGE_LEN + payload as usize];
            if from.receive(&mut rest).is_err() {
                return;
            }
            bytes.extend(rest);
        }
        if to.send(&bytes).is_err() {
            return;
        }
    }
}

/// What a well-behaved destination says, as far as the state.
pub fn behaved(message: &Message) -> Vec<Message> {
    match message {
        Message::Negotiate(_) => vec![message_of(Kind::Negotiated)],
        Message::Prepare => vec![Message::Prepared(Prepared {
            journal_ms: 0.5,
            hash_bytes_per_s: Some(f64::MAX),
            // Disks that nobody has.
            disks: vec!["other".into(); 100],
            kept_disks: Vec::new(),
        })],
        _ => vec![],
    }
}

/// A destination against a source that has come to `point` and then does what `play` does.
///
/// # Panics
/// When the destination does not go as far.
pub fn receive_from(
    options: &destination::Options,
    negotiate: Negotiate,
    point: Point,
    play: impl FnOnce(&PlayedSource),
) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let witness = Arc::default();
    let mut into = super::Destination::new(&witness);
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, options, &Steering::new(), &journal)
        });
        let source = PlayedSource::at(&connect, negotiate, point).unwrap();
        play(&source);
        source.see_out();
        there.join().unwrap()
    })
}
