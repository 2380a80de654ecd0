//! Strangers at a destination that waits: they keep nobody out, hold nothing up, and are told why they go.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use double::{Destination, Guest, Source, Witness, wait_until};
use migration::journal::{Decision, Journal, MemoryJournal};
use migration::observation::Side;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, MemoryConnect};
use migration::transport::{Connect, Connection, Patience};
use migration::wire::control::{Message, Resolution};
use migration::wire::hello::{Hello, Role};
use migration::{MigrationId, Outcome, destination, source};

const PATIENCE: Patience<'static> = Patience {
    timeout: Duration::from_secs(5),
    give_up: &|| false,
};
/// More than a destination has places for.
const CROWD: usize = 100;

fn stranger(connect: &MemoryConnect) -> Box<dyn Connection> {
    let connection = connect.connect(PATIENCE).unwrap();
    connection.set_io_timeout(Duration::from_secs(20)).unwrap();
    connection
}

/// A destination that takes a guest in while `meanwhile` runs; its outcome.
fn receiving(
    connect: &MemoryConnect,
    listen: &memory::MemoryListen,
    options: &destination::Options,
    meanwhile: impl FnOnce(&MemoryConnect),
) -> Outcome {
    let witness: Arc<Witness> = Arc::default();
    let mut into = Destination::new(&witness);
    let control = Steering::new();
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            let journal = MemoryJournal::default();
            destination::receive(listen, &mut into, options, &control, &journal)
        });
        {
            let _ending = Ending(&control);
            meanwhile(connect);
        }
        there.join().unwrap()
    })
}

/// Ends a destination that still waits, also when a test fails.
struct Ending<'a>(&'a Steering);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn migrate(connect: &MemoryConnect) -> Outcome {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    vm.fill(0, 0, 10);
    let options = source::Options::new(
        MigrationId::random().unwrap(),
        MigrateRequest {
            streams: Some(2),
            ..MigrateRequest::new("unix:/there")
        },
    );
    let journal = MemoryJournal::default();
    source::migrate(&vm, connect, &options, &Steering::new(), &journal)
}

/// The identifier of what the connection is told, if it is told anything before it ends.
fn told(connection: &dyn Connection) -> Option<String> {
    match Message::receive(connection) {
        Ok(Message::Failure(why)) => Some(why.id),
        Ok(other) => panic!("told {other:?}"),
        Err(_) => None,
    }
}

#[test]
fn a_hello_that_trickles_in_is_not_waited_for() {
    let options = destination::Options {
        hello_timeout: Duration::from_millis(200),
        ..destination::Options::default()
    };
    let (connect, listen) = memory::network(&[]);
    receiving(&connect, &listen, &options, |connect| {
        let stranger = stranger(connect);
        let id = MigrationId::random().unwrap();
        // Twice as long as a hello may take; none of its bytes is late.
        for byte in Hello::new(Role::Control, id, [0; 16]).encode() {
            if stranger.send(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(Message::receive(&*stranger).is_err(), "it was welcome");
    });
}

#[test]
fn a_source_comes_in_though_strangers_have_all_places() {
    let (connect, listen) = memory::network(&[]);
    let options = destination::Options {
        hello_timeout: Duration::from_secs(60),
        ..destination::Options::default()
    };
    let outcome = receiving(&connect, &listen, &options, |connect| {
        let crowd: Vec<_> = (0..CROWD).map(|_| stranger(connect)).collect();
        let outcome = migrate(connect);
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        // Who had its place for longest had to go, and was told why.
        assert_eq!(told(&*crowd[0]).as_deref(), Some("migration.busy"));
        // The last one only because it was all over.
        assert_eq!(told(&*crowd[CROWD - 1]), None);
    });
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
}

#[test]
fn strangers_do_not_hold_up_the_end() {
    let (connect, listen) = memory::network(&[]);
    let options = destination::Options {
        hello_timeout: Duration::from_secs(60),
        ..destination::Options::default()
    };
    let (ended, said) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (ended, said) = (&ended, &said);
        let outcome = receiving(&connect, &listen, &options, |connect| {
            let crowd: Vec<_> = (0..10).map(|_| stranger(connect)).collect();
            scope.spawn(move || {
                // One byte each 0.4 s, so that none of them is ever silent for long.
                for _ in 0..75 {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    for stranger in &crowd {
                        let _ = stranger.send(b"v");
                    }
                    said.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(400));
                }
            });
            wait_until("strangers begin", || said.load(Ordering::SeqCst) > 0);
            let outcome = migrate(connect);
            assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        });
        ended.store(true, Ordering::SeqCst);
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        let said = said.load(Ordering::SeqCst);
        assert!(said < 75, "it ended only with the strangers");
    });
}

#[test]
fn a_question_is_answered_though_strangers_have_all_places() {
    let (connect, listen) = memory::network(&[]);
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let id = MigrationId::random().unwrap();
    let record = migration::journal::SourceRecord {
        handover: migration::journal::Handover::CommitSent,
        destination: "memory".into(),
        host: Some(theirs.identity()),
        overlay: None,
    };
    ours.record(id, &record).unwrap();
    theirs.reserve(id, Side::Destination).unwrap();
    theirs.decide(id, Decision::Commit).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let crowd: Vec<_> = (0..CROWD).map(|_| stranger(&connect)).collect();
        scope.spawn(|| destination::answer_resolve(&listen, &theirs, &stop).unwrap());
        let answer = source::resolve(&connect, id, &ours);
        stop.store(true, Ordering::SeqCst);
        assert_eq!(answer.unwrap(), Resolution::Ran);
        drop(crowd);
    });
}
