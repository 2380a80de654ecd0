//! A peer that says what it may not, or what it may too often: it is refused by the first header of it, on
//! both sides and in every phase, and nothing is kept of what follows.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use double::players::{
    PlayedSource, Point, behaved, kinds, message_of, one_stream_unverified, receive_from, say,
    serve, wanted,
};
use double::{Destination, Guest, Source, Witness};
use migration::journal::MemoryJournal;
use migration::steering::Steering;
use migration::transport::memory;
use migration::wire::batch::BatchHeader;
use migration::wire::control::{Message, Negotiate};
use migration::wire::kind::Kind;
use migration::{MigrationId, Outcome, destination, source};
use zerocopy::IntoBytes;

/// Frames of a flood.
const FLOOD: usize = 20;

fn root(outcome: &Outcome) -> Option<&str> {
    let error = outcome.report().error.as_ref()?;
    Some(&error.root().id)
}

/// A destination against a source that has come to `point` and then does as `flood` says.
fn flood_destination(
    negotiate: Negotiate,
    point: Point,
    flood: impl FnOnce(&PlayedSource),
) -> Outcome {
    let options = destination::Options {
        io_timeout: Duration::from_secs(2),
        progress_timeout: Duration::from_secs(5),
        ..destination::Options::default()
    };
    receive_from(&options, negotiate, point, flood)
}

#[test]
fn a_destination_takes_no_flood_of_any_kind_in_any_phase() {
    for point in Point::ALL {
        for kind in kinds() {
            let message = message_of(kind);
            let outcome = flood_destination(wanted(), point, |source| {
                for _ in 0..FLOOD {
                    source.say(&message);
                }
                // Keep-alive may come as often as it likes, and what comes after it is heard.
                if matches!(kind, Kind::Ping | Kind::Pong) {
                    source.say(&message_of(Kind::Welcome));
                }
            });
            let name = kind.name();
            match (point, kind) {
                (Point::Loaded, Kind::Commit) => {
                    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
                }
                (_, Kind::Failure) => assert_eq!(root(&outcome), Some("test.failure"), "{point:?}"),
                _ => assert_eq!(
                    root(&outcome),
                    Some("migration.protocol"),
                    "{name} at {point:?}: {outcome:?}"
                ),
            }
        }
    }
}

#[test]
fn of_a_flood_of_states_one_is_kept() {
    let sent = AtomicUsize::new(0);
    let outcome = flood_destination(wanted(), Point::Prepared, |source| {
        let state = Message::State(vec![1; 2 << 20]);
        for _ in 0..FLOOD {
            if !source.say(&state) {
                return;
            }
            sent.fetch_add(1, Ordering::SeqCst);
        }
    });
    assert_eq!(root(&outcome), Some("migration.protocol"), "{outcome:?}");
    assert_eq!(sent.load(Ordering::SeqCst), 1, "bodies were read");
}

#[test]
fn a_stream_does_not_run_ahead_of_the_others() {
    let negotiate = Negotiate {
        streams: 2,
        ..wanted()
    };
    let outcome = flood_destination(negotiate, Point::Prepared, |source| {
        // The other one never ends a pass, so none is ever placed.
        for pass in 1..1000 {
            let end = BatchHeader::pass_end(pass);
            if source.data[0].send(end.as_bytes()).is_err() {
                return;
            }
        }
    });
    assert_eq!(root(&outcome), Some("migration.protocol"), "{outcome:?}");
}

#[test]
fn a_flood_of_pings_is_answered_and_leaves_nothing() {
    const PINGS: u64 = 5000;
    let outcome = flood_destination(wanted(), Point::Prepared, |source| {
        let control = &*source.control;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..PINGS {
                    say(control, &Message::Ping(n));
                }
            });
            let mut answered = 0;
            while answered < PINGS {
                if let Message::Pong(_) = Message::receive(control).unwrap() {
                    answered += 1;
                }
            }
        });
        source.say(&message_of(Kind::Welcome));
    });
    assert_eq!(root(&outcome), Some("migration.protocol"), "{outcome:?}");
}

#[test]
fn a_frame_that_trickles_in_is_not_waited_for() {
    let options = destination::Options {
        io_timeout: Duration::from_millis(300),
        ..destination::Options::default()
    };
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let mut into = Destination::new(&witness);
    let outcome = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        let source = PlayedSource::at(&connect, wanted(), Point::Prepared).unwrap();
        // None of its bytes is late.
        for byte in Message::Ping(1).encode().unwrap() {
            if source.control.send(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        source.see_out();
        there.join().unwrap()
    });
    let Outcome::Failed(report) = outcome else {
        panic!("{outcome:?}")
    };
    let error = report.error.unwrap();
    assert!(error.root().message.contains("timed out"), "{error:?}");
}

/// A source against a destination that floods it with `kind` once it hears `at`.
fn flood_source(at: &str, kind: Kind) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    vm.fill(0, 0, 10);
    let options = source::Options {
        io_timeout: Duration::from_secs(2),
        resolve_for: Duration::from_millis(100),
        ..source::Options::new(MigrationId::random().unwrap(), one_stream_unverified())
    };
    let journal = MemoryJournal::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let answer = |message: &Message| {
                if message.name() == at {
                    let mut said = behaved(message);
                    said.extend((0..FLOOD).map(|_| message_of(kind)));
                    if matches!(kind, Kind::Ping | Kind::Pong) {
                        said.push(message_of(Kind::Welcome));
                    }
                    return Some(said);
                }
                match message {
                    Message::LastPass(_) => Some(vec![message_of(Kind::Ready)]),
                    Message::Failure(_) => None,
                    other => Some(behaved(other)),
                }
            };
            serve(&listen, 1, &answer);
        });
        source::migrate(&vm, &connect, &options, &Steering::new(), &journal)
    })
}

#[test]
fn a_source_takes_no_flood_of_any_kind_in_any_phase() {
    for at in ["negotiate", "prepare", "extents", "state", "commit"] {
        for kind in kinds() {
            let outcome = flood_source(at, kind);
            match (at, kind) {
                ("commit", Kind::Committed) => {
                    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
                }
                (_, Kind::Failure) => assert_eq!(root(&outcome), Some("test.failure"), "{at}"),
                _ => assert_eq!(
                    root(&outcome),
                    Some("migration.protocol"),
                    "{} at {at}: {outcome:?}",
                    kind.name()
                ),
            }
        }
    }
}

#[test]
fn what_comes_late_goes_only_to_who_knows_it() {
    for version in 1..=migration::wire::VERSION {
        let (connect, listen) = memory::network(&[]);
        let witness: Arc<Witness> = Arc::default();
        let mut vm = Source::new(64, Guest::Idle, &witness);
        vm.late = Some(b"a packet".to_vec());
        let options = source::Options::new(MigrationId::random().unwrap(), one_stream_unverified());
        let journal = MemoryJournal::default();
        let came = AtomicUsize::new(0);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let answer = |message: &Message| match message {
                    Message::LastPass(_) => Some(vec![message_of(Kind::Ready)]),
                    Message::Commit => Some(vec![message_of(Kind::Committed)]),
                    Message::Forwarded(_) => {
                        came.fetch_add(1, Ordering::SeqCst);
                        Some(vec![])
                    }
                    Message::Finish => None,
                    other => Some(behaved(other)),
                };
                serve(&listen, version, &answer);
            });
            source::migrate(&vm, &connect, &options, &Steering::new(), &journal)
        });
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        let came = came.load(Ordering::SeqCst);
        assert_eq!(came > 0, version >= 3, "{came} came in version {version}");
    }
}
