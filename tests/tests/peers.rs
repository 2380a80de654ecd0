//! Peers that are absent, something else, of another version, or mean harm.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, scope, spawn};
use std::time::Duration;

use serde_json::{Value, json};
use tests::blackbox::wire::{self, Peer, Role, hello, kind};
use tests::blackbox::{Console, Ended, Guest, Migration, Pair, Vms, guest_lock, holds, leftovers};

const VERSIONS: (u16, u16) = (1, 1);
const ID: [u8; 16] = [0x5a; 16];

/// A destination that does `play` with every connection.
fn stranger(play: impl Fn(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("stranger listens");
    let address = listener.local_addr().expect("address").to_string();
    let thread = spawn(move || {
        for stream in listener.incoming().flatten() {
            let end = stream.try_clone().expect("stream");
            play(stream);
            drop(end);
        }
    });
    (address, thread)
}

#[track_caller]
fn stays(pair: &Pair, console: &mut Console, ended: &Ended, words: &[&str]) {
    let why = ended.ended(1, "failed");
    assert_eq!(ended.report["status"], "failed", "{:#}", ended.report);
    for word in words {
        assert!(
            why.contains(&word.to_lowercase()),
            "{word:?} is missing in {why}"
        );
    }
    assert_eq!(pair.source.status("guest")["state"], "running");
    console.wait_tick();
    console.verifies_ledger();
}

fn read_hello(stream: &mut TcpStream) {
    let mut bytes = [0; wire::HELLO_LEN];
    let _ = stream.read_exact(&mut bytes);
}

fn welcome(version: u16) -> Vec<u8> {
    let body = json!({ "version": version, "token": vec![7; 16] });
    wire::frame(kind::WELCOME, body.to_string().as_bytes())
}

#[test]
fn guest_stays_when_the_destination_is_not_ours() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());

    let free = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("port");
    let nobody = free.to_string();
    let (http, _) = stranger(|mut stream| {
        let mut request = [0; 16];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let (closes, _) = stranger(drop);
    let (older, _) = stranger(|mut stream| {
        read_hello(&mut stream);
        let refusal = json!({
            "id": "migration.version", "message": "this host speaks protocol version 99",
            "side": "destination", "at_us": 0,
        });
        let _ = stream.write_all(&wire::frame(kind::FAILURE, refusal.to_string().as_bytes()));
    });
    let (newer, _) = stranger(|mut stream| {
        read_hello(&mut stream);
        let _ = stream.write_all(&welcome(99));
    });
    let (huge, _) = stranger(|mut stream| {
        read_hello(&mut stream);
        let _ = stream.write_all(&wire::header_only(kind::WELCOME, u32::MAX));
    });
    let (wrong, _) = stranger(|mut stream| {
        read_hello(&mut stream);
        let _ = stream.write_all(&wire::frame(kind::COMMITTED, b"{}"));
    });
    let (hasty, _) = stranger(|mut stream| {
        read_hello(&mut stream);
        let _ = stream.write_all(&welcome(1));
        let ready = json!({ "digest": null, "load_ms": 0.0 });
        let _ = stream.write_all(&wire::frame(kind::READY, ready.to_string().as_bytes()));
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let unix = format!(
        "unix:{}",
        pair.destination.path().join("absent.sock").display()
    );
    let cases: [(&str, &str, &[&str]); 9] = [
        ("not listening", &nobody, &["refused", &nobody]),
        ("no socket", &unix, &["no such file", &unix]),
        ("an HTTP server", &http, &["protocol"]),
        ("hangs up", &closes, &["connection"]),
        ("refuses the version", &older, &["version 99"]),
        ("another version", &newer, &["version 99"]),
        ("a huge frame", &huge, &["protocol"]),
        ("a frame out of order", &wrong, &["committed"]),
        ("ready at once", &hasty, &["ready"]),
    ];
    for (what, address, words) in cases {
        println!("{what}");
        let ended = Migration::start(&pair.source, "guest", address, &[]).finish();
        let mut words = words.to_vec();
        words.push("negotiate");
        stays(&pair, &mut console, &ended, &words);
    }
    // And in words, on one line.
    let run = pair.source.vmm(["migrate", "guest", "--to", &nobody]);
    tests::blackbox::fails(run, 1, &["negotiate", "refused", &nobody]);
}

#[test]
fn silent_destination_does_not_hold_the_guest() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let (silent, _) = stranger(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let patient = ["--timeout", "1s"];
    let ended = Migration::start(&pair.source, "guest", &silent, &patient).finish();
    stays(&pair, &mut console, &ended, &["negotiate"]);
    let mut migration = Migration::start(&pair.source, "guest", &silent, &[]);
    migration.wait_phase("negotiate");
    let _ = pair.source.vmm(["migrate", "guest", "--cancel"]).success();
    let _ = migration.finish().ended(4, "cancelled");
    console.verifies_ledger();
}

#[test]
fn plain_tcp_beyond_loopback_needs_consent() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    pair.source.run("guest", &Guest::idle());
    // Nothing is sent: the address is refused before anybody is asked.
    let run = pair
        .source
        .vmm(["migrate", "guest", "--to", "192.0.2.1:4444"]);
    assert!(matches!(run.code(), 1 | 2), "{run}");
    assert!(run.stderr.contains("--insecure"), "{run}");
    assert_eq!(pair.source.status("guest")["state"], "running");
}

/// What a source would say first, learnt from a real one that is then turned away.
fn negotiate_of_a_real_source(pair: &Pair) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address").to_string();
    let migration = Migration::start(&pair.source, "guest", &address, &["--streams", "1"]);
    let (mut stream, _) = listener.accept().expect("source connects");
    read_hello(&mut stream);
    let _ = stream.write_all(&welcome(1));
    let body = Peer(stream).expect(kind::NEGOTIATE);
    let _ = migration.finish();
    body
}

/// A source played by hand that has come as far as `prepared`.
struct Impostor {
    control: Peer<TcpStream>,
    token: [u8; 16],
    address: String,
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("destination listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("time-out");
    stream
}

impl Impostor {
    fn new(address: &str) -> Self {
        let mut control = Peer(connect(address));
        control.send(&hello(VERSIONS, Role::Control, ID, [0; 16]));
        let body = control.expect(kind::WELCOME);
        let token: Vec<u8> = serde_json::from_value(body["token"].clone()).expect("token");
        let token = token.try_into().expect("16 bytes");
        Self {
            control,
            token,
            address: address.to_owned(),
        }
    }

    fn negotiated(address: &str, machine: &Value) -> Self {
        let mut this = Self::new(address);
        this.control.send(&wire::frame(
            kind::NEGOTIATE,
            machine.to_string().as_bytes(),
        ));
        this.control.expect(kind::NEGOTIATED);
        this
    }

    fn prepared(address: &str, machine: &Value) -> Self {
        let mut this = Self::negotiated(address, machine);
        this.control.send(&wire::frame(kind::PREPARE, b""));
        this.control.expect(kind::PREPARED);
        this.control
            .send(&wire::frame(kind::EXTENTS, br#"{"extents":[]}"#));
        this
    }

    fn data(&self) -> TcpStream {
        let mut stream = connect(&self.address);
        stream
            .write_all(&hello(VERSIONS, Role::Data, ID, self.token))
            .expect("hello");
        stream
    }

    /// What the destination says in the end.
    fn refusal(&mut self) -> String {
        while let Some((kind, body)) = self.control.receive() {
            if kind == kind::FAILURE {
                return String::from_utf8_lossy(&body).to_lowercase();
            }
        }
        String::new()
    }
}

/// Strangers that never get so far as to begin a migration: the receiver waits on.
#[test]
fn receiver_waits_on_after_strangers() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let damaged = {
        let mut bytes = hello(VERSIONS, Role::Control, ID, [0; 16]);
        bytes[30] ^= 1;
        bytes
    };
    let random: Vec<u8> = (0..4096_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("one byte", vec![b'v']),
        ("random bytes", random),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(8),
        ),
        ("a damaged hello", damaged),
        (
            "another version",
            hello((99, 98), Role::Control, ID, [0; 16]),
        ),
        (
            "data of no migration",
            hello(VERSIONS, Role::Data, ID, [9; 16]),
        ),
        (
            "half a hello",
            hello(VERSIONS, Role::Control, ID, [0; 16])[..40].to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        let mut stream = connect(&address);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(pair.destination.status("guest")["state"], "incoming");
    }
    // One that says nothing at all does not keep others out.
    let _silent = connect(&address);
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}

/// More strangers than there are places, of which each sends a byte now and then: the guest comes in, that
/// is told at once, and whoever asks about it is answered.
#[test]
fn strangers_neither_keep_a_guest_out_nor_hold_up_what_is_told() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    scope(|scope| {
        let (over, rounds, address) = (&over, &rounds, &address);
        scope.spawn(move || {
            let mut crowd: Vec<_> = (0..40).map(|_| connect(address)).collect();
            while !over.load(Ordering::SeqCst) && rounds.load(Ordering::SeqCst) < 300 {
                for stranger in &mut crowd {
                    if stranger.write_all(b"v").is_err() {
                        *stranger = connect(address);
                    }
                }
                rounds.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        holds("strangers come", || rounds.load(Ordering::SeqCst) > 0);
        let report = Migration::start(&pair.source, "guest", address, &[])
            .finish()
            .completed();
        console.moves_to(&pair.destination, "guest");
        let migration = report["migration_id"].as_str().expect("migration id");
        let id: Vec<u8> = (0..16)
            .map(|i| u8::from_str_radix(&migration[2 * i..2 * i + 2], 16).expect("hex"))
            .collect();
        let id = id.try_into().expect("16 bytes");
        let mut answer = None;
        // Whoever comes in just when the migration ends has to come again, as a source does.
        holds("the question is answered", || {
            let mut asks = Peer(connect(address));
            asks.send(&hello((1, 1), Role::Resolve, id, [0; 16]));
            answer = asks.receive();
            answer.is_some()
        });
        let (number, body) = answer.expect("it was answered");
        assert_eq!(number, kind::RESOLUTION);
        let said: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(said, json!("ran"));
        over.store(true, Ordering::SeqCst);
    });
    assert!(
        rounds.load(Ordering::SeqCst) < 300,
        "nothing went on before the strangers left"
    );
    console.verifies_ledger();
}

/// Plays a source as the destination's own machine is described; what the destination says.
type Play = fn(&str, &Value) -> String;

/// Whatever fails before the machine is built, which any stranger can bring about.
#[test]
fn receiver_waits_on_after_what_a_hostile_source_says_at_the_beginning() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::dirtying());
    let machine = negotiate_of_a_real_source(&pair);
    let cases: [(&str, Play); 10] = [
        ("nothing more than its hello", |address, _| {
            drop(Impostor::new(address));
            "hangs up".into()
        }),
        ("noise after its hello", |address, _| {
            let mut it = Impostor::new(address);
            it.control.send(&[0xa5; 4096]);
            it.refusal()
        }),
        ("a disk that is not there", |address, machine| {
            let mut it = Impostor::new(address);
            let mut wanted = machine.clone();
            let described = wanted["machine"]["machine"].as_str().unwrap_or_default();
            let mut described: Value = serde_json::from_str(described).expect("machine");
            described["disks"] = json!([
                { "id": "data", "path": "/absent.img", "access": "read-write", "size": 4096 }
            ]);
            wanted["machine"]["machine"] = json!(described.to_string());
            it.control
                .send(&wire::frame(kind::NEGOTIATE, wanted.to_string().as_bytes()));
            it.refusal()
        }),
        ("a frame of unknown kind", |address, _| {
            let mut it = Impostor::new(address);
            it.control.send(&wire::frame(77, b""));
            it.refusal()
        }),
        ("a length beyond all bounds", |address, _| {
            let mut it = Impostor::new(address);
            it.control
                .send(&wire::header_only(kind::NEGOTIATE, u32::MAX));
            it.refusal()
        }),
        ("a damaged frame", |address, machine| {
            let mut it = Impostor::new(address);
            let mut frame = wire::frame(kind::NEGOTIATE, machine.to_string().as_bytes());
            frame[200] ^= 1;
            it.control.send(&frame);
            it.refusal()
        }),
        ("a machine that is none", |address, machine| {
            let mut it = Impostor::new(address);
            let mut machine = machine.clone();
            machine["machine"]["machine"] = json!("{}");
            it.control.send(&wire::frame(
                kind::NEGOTIATE,
                machine.to_string().as_bytes(),
            ));
            it.refusal()
        }),
        ("memory of an exabyte", |address, machine| {
            let mut it = Impostor::new(address);
            let mut machine = machine.clone();
            machine["machine"]["ram"] = json!([{ "gpa": 0, "len": 1_u64 << 60 }]);
            it.control.send(&wire::frame(
                kind::NEGOTIATE,
                machine.to_string().as_bytes(),
            ));
            it.refusal()
        }),
        ("commit at once", |address, machine| {
            let mut it = Impostor::negotiated(address, machine);
            it.control.send(&wire::frame(kind::COMMIT, b""));
            it.refusal()
        }),
        ("state before pages", |address, machine| {
            let mut it = Impostor::negotiated(address, machine);
            it.control.send(&wire::frame(kind::STATE, b"state"));
            it.refusal()
        }),
    ];
    let address = pair.destination.receive("victim", "127.0.0.1:0");
    for (number, (what, play)) in (1..).zip(cases) {
        println!("{what}");
        let said = play(&address, &machine);
        assert!(!said.is_empty(), "the receiver did not say why");
        holds("the receiver waits on", || {
            pair.destination.status("victim")["failed_migrations"] == number
        });
    }
    pair.destination.waits_on("victim");
    Migration::start(&pair.source, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(&pair.destination, "victim");
    console.verifies_ledger();
    let status = pair.destination.status("victim");
    assert!(status["last_failure"].is_null(), "{status:#}");
}

#[test]
fn receiver_refuses_what_a_hostile_source_says() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    pair.source.run("guest", &Guest::idle());
    let machine = negotiate_of_a_real_source(&pair);
    let cases: [(&str, Play); 6] = [
        ("pages outside of RAM", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let mut data = it.data();
            let _ = data.write_all(&wire::batch(1, 1 << 40, 1, &[0xee; 4096]));
            it.refusal()
        }),
        ("pages across the end of RAM", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let mut data = it.data();
            let _ = data.write_all(&wire::batch(1, (64 << 20) - 4096, 2, &[0xee; 8192]));
            it.refusal()
        }),
        ("pages at an odd address", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let mut data = it.data();
            let _ = data.write_all(&wire::batch(1, 4097, 1, &[0xee; 4096]));
            it.refusal()
        }),
        ("more payload than pages", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let mut data = it.data();
            let _ = data.write_all(&wire::batch(1, 4096, 1, &[0xee; 8192]));
            it.refusal()
        }),
        ("noise for pages", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let mut data = it.data();
            let _ = data.write_all(&[0xa5; 4096]);
            it.refusal()
        }),
        ("a state beyond all bounds", |address, machine| {
            let mut it = Impostor::prepared(address, machine);
            let _data = it.data();
            it.control
                .send(&wire::header_only(kind::STATE, (64 << 20) + 1));
            it.refusal()
        }),
    ];
    for (what, play) in cases {
        println!("{what}");
        let mut receiver =
            pair.destination
                .spawn(["receive", "--name", "victim", "--listen", "127.0.0.1:0"]);
        pair.destination.wait_state("victim", "incoming");
        let status = pair.destination.status("victim");
        let said = play(status["listen"].as_str().expect("address"), &machine);
        assert!(!said.is_empty(), "the receiver did not say why");
        holds("the receiver ends", || !receiver.is_running());
        let ended = receiver
            .finish(tests::blackbox::wait::PATIENCE)
            .unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(ended.code(), 1, "{ended}");
        assert!(!ended.stderr.contains("panicked"), "{ended}");
        pair.destination.is_clean();
    }
}

#[test]
fn receiver_takes_no_memory_for_promises() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    pair.source.run("guest", &Guest::idle());
    let machine = negotiate_of_a_real_source(&pair);
    let address = pair.destination.receive("victim", "127.0.0.1:0");
    let pid = pair.destination.pid("victim");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .expect("number")
    };
    let mut it = Impostor::prepared(&address, &machine);
    let _data = it.data();
    let before = resident();
    // 64 MiB are promised, and allowed, but never sent.
    it.control.send(&wire::header_only(kind::STATE, 64 << 20));
    it.control.send(&[0; 4096]);
    assert_eq!(pair.destination.status("victim")["state"], "incoming");
    assert!(
        resident() < before + (16 << 10),
        "{before} KiB became {} KiB",
        resident()
    );
    drop(it);
    holds("the receiver gives up", || {
        pair.destination.state("victim").as_deref() == Some("failed")
            || leftovers::memories(pid) == 0
    });
    assert_eq!(pair.source.status("guest")["state"], "running");
}
