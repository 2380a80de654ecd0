//! A guest moves over each transport, whole.

mod double;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use double::{Destination, Guest, Source, Witness, network};
use migration::journal::{FileJournal, Journal, MemoryJournal};
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::{Connect, Connection, Listen, Patience, Piece, Within, memory};
use migration::wire::hello::{Hello, Role};
use migration::{MigrationId, Outcome, destination, source};

const BUSY: Guest = Guest::Writes {
    pages: 40,
    pause: Duration::from_micros(50),
};

fn options() -> source::Options {
    source::Options::new(
        MigrationId::random().unwrap(),
        MigrateRequest::new("unix:/there"),
    )
}

struct Moved {
    there: Outcome,
    here: Outcome,
}

fn run(
    vm: &Source,
    into: &mut Destination,
    options: &source::Options,
    connect: &dyn Connect,
    listen: &dyn Listen,
    journals: [&dyn Journal; 2],
) -> Moved {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options::default();
            destination::receive(listen, into, &options, &Steering::new(), journals[1])
        });
        let here = source::migrate(vm, connect, options, &Steering::new(), journals[0]);
        Moved {
            there: there.join().unwrap(),
            here,
        }
    })
}

fn assert_moved(vm: &Source, into: &Destination, moved: &Moved, witness: &Witness) {
    let Outcome::Completed(report) = &moved.here else {
        panic!("{:?}", moved.here.report());
    };
    assert!(
        matches!(moved.there, Outcome::Completed(_)),
        "{:?}",
        moved.there
    );
    assert!(vm.contents() == into.contents(), "memory differs");
    assert_eq!(into.state.as_deref(), Some(vm.state.as_slice()));
    assert_eq!(witness.running(), (false, true));
    assert_eq!(into.started, 1);
    let sharing = [&vm.shared, &vm.sharing].map(|threads| threads.load(Ordering::SeqCst));
    assert!(sharing[0] > 0, "nobody said that processors are shared");
    assert_eq!(sharing[1], 0, "they are no longer");
    let downtime = report.downtime_ms.unwrap();
    assert!(downtime > 0.0 && report.total_ms >= downtime);
    let parts = &report.downtime;
    let measured_here = [
        parts.stop,
        parts.last_pages,
        parts.state_save,
        parts.state_send,
    ];
    let sum: f64 = measured_here.iter().flatten().sum::<f64>() + parts.state_load + parts.commit;
    assert!((sum - downtime).abs() < 0.2 * downtime + 1.0, "{report:?}");
}

fn busy_source(witness: &Arc<Witness>) -> Source {
    let vm = Source::new(3000, BUSY, witness);
    vm.fill(0, 0, 700);
    vm.fill(1, 300, 900);
    vm
}

fn move_with(connect: &dyn Connect, listen: &dyn Listen, verify: Verify, streams: u8) {
    let witness = Arc::default();
    let vm = busy_source(&witness);
    let mut into = Destination::new(&witness);
    let options = source::Options {
        ..source::Options::new(
            MigrationId::random().unwrap(),
            MigrateRequest {
                verify,
                streams: Some(streams),
                ..MigrateRequest::new("unix:/there")
            },
        )
    };
    let journals: [&dyn Journal; 2] = [&MemoryJournal::default(), &MemoryJournal::default()];
    let moved = run(&vm, &mut into, &options, connect, listen, journals);
    assert_moved(&vm, &into, &moved, &witness);
    assert_eq!(moved.here.report().verified, verify != Verify::Off);
}

#[test]
fn guest_moves_in_memory_with_any_number_of_streams() {
    for streams in [1, 2, 3, 16] {
        let (connect, listen) = memory::network(&[]);
        move_with(&connect, &listen, Verify::Stream, streams);
    }
}

/// What the other streams have sent of guest memory, in bytes, while stream 0 sends nothing until that
/// is `enough`.
#[derive(Default)]
struct Held {
    enough: usize,
    sent: Mutex<usize>,
    more: Condvar,
}

/// A network in which stream 0 is held.
struct Holding<C>(C, Arc<Held>);

struct Holder {
    inner: Box<dyn Connection>,
    role: Mutex<Option<Role>>,
    held: Arc<Held>,
}

impl<C: Connect> Connect for Holding<C> {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Holder {
            inner: self.0.connect(patience)?,
            role: Mutex::default(),
            held: self.1.clone(),
        }))
    }

    fn address(&self) -> String {
        self.0.address()
    }
}

impl Connection for Holder {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        let hello = || Hello::decode(bytes.try_into().unwrap()).unwrap();
        let role = *self
            .role
            .lock()
            .unwrap()
            .get_or_insert_with(|| hello().role);
        let pages = pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Ram(_)))
            .map(Piece::len)
            .sum::<usize>();
        match role {
            Role::Data { stream: 0 } if pages > 0 => {
                let sent = self.held.sent.lock().unwrap();
                let (_sent, waited) = self
                    .held
                    .more
                    .wait_timeout_while(sent, Duration::from_secs(10), |sent| {
                        *sent < self.held.enough
                    })
                    .unwrap();
                assert!(!waited.timed_out(), "the others wait for stream 0");
            }
            Role::Data { .. } => {
                *self.held.sent.lock().unwrap() += pages;
                self.held.more.notify_all();
            }
            _ => {}
        }
        self.inner.send_pieces(bytes, pieces)
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        self.inner.receive_pieces(bytes, pieces)
    }

    fn send_within(&self, bytes: &[u8], within: Within) -> io::Result<()> {
        self.inner.send_within(bytes, within)
    }

    fn receive_within(&self, bytes: &mut [u8], within: Within) -> io::Result<()> {
        self.inner.receive_within(bytes, within)
    }

    fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        self.inner.wait_readable(timeout)
    }

    fn set_io_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.inner.set_io_timeout(timeout)
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

#[test]
fn what_a_slow_stream_does_not_come_to_the_others_carry() {
    let witness = Arc::default();
    let vm = Source::new(6 * 512, Guest::Idle, &witness);
    vm.fill(0, 0, 3 * 512);
    let mut into = Destination::new(&witness);
    let (connect, listen) = memory::network(&[]);
    let held = Held {
        // All but the stripe that stream 0 has taken.
        enough: 2 * 512 * 4096,
        ..Held::default()
    };
    let connect = Holding(connect, Arc::new(held));
    let options = source::Options::new(
        MigrationId::random().unwrap(),
        MigrateRequest {
            streams: Some(2),
            ..MigrateRequest::new("unix:/there")
        },
    );
    let journals: [&dyn Journal; 2] = [&MemoryJournal::default(), &MemoryJournal::default()];
    let moved = run(&vm, &mut into, &options, &connect, &listen, journals);
    assert_moved(&vm, &into, &moved, &witness);
    assert!(moved.here.report().verified);
}

#[test]
fn guest_moves_over_tcp_however_it_is_verified() {
    for verify in [Verify::Stream, Verify::Full, Verify::Off] {
        let (connect, listen) = network::tcp();
        move_with(&connect, &listen, verify, 2);
    }
}

#[test]
fn guest_moves_over_a_unix_socket_with_durable_journals() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:{}/in.sock", directory.path().display());
    let (connect, listen) = network::listening(&address);
    let witness = Arc::default();
    let vm = busy_source(&witness);
    let mut into = Destination::new(&witness);
    let ours = FileJournal::open(directory.path().join("source")).unwrap();
    let theirs = FileJournal::open(directory.path().join("destination")).unwrap();
    let moved = run(
        &vm,
        &mut into,
        &options(),
        &connect,
        &listen,
        [&ours, &theirs],
    );
    assert_moved(&vm, &into, &moved, &witness);
}

#[test]
fn each_side_reports_what_it_knows_and_no_zeroes_for_the_rest() {
    let (connect, listen) = memory::network(&[]);
    let witness = Arc::default();
    let vm = busy_source(&witness);
    let mut into = Destination::new(&witness);
    let journals: [&dyn Journal; 2] = [&MemoryJournal::default(), &MemoryJournal::default()];
    let moved = run(&vm, &mut into, &options(), &connect, &listen, journals);
    let [here, there] =
        [&moved.here, &moved.there].map(|outcome| serde_json::to_value(outcome.report()).unwrap());
    for field in [
        "/downtime_ms",
        "/forecast_downtime_ms",
        "/iterations",
        "/throttle_max",
        "/downtime/stop",
        "/downtime/last_pages",
        "/downtime/state_save",
        "/downtime/state_send",
        "/encodings/hole",
    ] {
        assert!(here.pointer(field).is_some(), "{field} in {here:#}");
        assert!(there.pointer(field).is_none(), "{field} in {there:#}");
    }
    for field in ["/total_ms", "/setup_ms", "/downtime/commit", "/wire_bytes"] {
        let value = there.pointer(field).and_then(serde_json::Value::as_f64);
        assert!(value.is_some_and(|n| n > 0.0), "{field} in {there:#}");
    }
    assert_eq!(here["migration_id"], there["migration_id"]);
    assert_eq!(here["guest_bytes"], there["guest_bytes"]);
    let read: migration::progress::Report = serde_json::from_value(there).unwrap();
    assert_eq!(&read, moved.there.report());
}
