//! A peer that speaks the protocol and means harm: one clear error, nothing left, the guest goes on.

mod double;

use std::sync::Arc;
use std::time::Duration;

use double::players::{
    PlayedSource, Point, behaved, live, message_of, receive_from, say, serve_slowly, wanted,
};
use double::{Destination, Guest, Source, Witness};
use migration::journal::{Journal, MemoryJournal};
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::{Connection, memory};
use migration::vm::RamRegion;
use migration::wire::batch::{BatchHeader, Encoding, PageRange};
use migration::wire::control::{
    Answer, Extents, LastPass, Message, Negotiate, Ready, Resolution, Welcome,
};
use migration::wire::kind::Kind;
use migration::{MigrationId, Outcome, destination, source};
use zerocopy::IntoBytes;

const RAN: Answer = Answer {
    resolution: Resolution::Ran,
    host: None,
};

/// Plays a source as far as `streams`, which gets the control and the data connections.
fn play_source(
    negotiate: Negotiate,
    streams: impl FnOnce(&dyn Connection, &[Box<dyn Connection>]) + Send,
) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let mut into = Destination::new(&witness);
    let outcome = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options {
                io_timeout: Duration::from_millis(300),
                peer_timeout: Duration::from_millis(300),
                progress_timeout: Duration::from_millis(900),
                ..destination::Options::default()
            };
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        if let Some(source) = PlayedSource::at(&connect, negotiate, Point::Prepared) {
            streams(&*source.control, &source.data);
            source.see_out();
        }
        there.join().unwrap()
    });
    assert!(into.has_nothing(), "something is left");
    assert_eq!(witness.running(), (false, false));
    outcome
}

fn root(outcome: &Outcome) -> (&str, &str) {
    let Outcome::Failed(report) = outcome else {
        panic!("{outcome:?}")
    };
    let root = report.error.as_ref().unwrap().root();
    (&root.id, &root.message)
}

fn batch(ranges: &[PageRange], payload: usize) -> Vec<u8> {
    let header = BatchHeader::of(1, ranges);
    [header.as_bytes(), ranges.as_bytes(), &vec![0xab; payload]].concat()
}

#[test]
fn pages_that_do_not_belong_are_refused() {
    let raw = |gpa, pages| {
        batch(
            &[PageRange::new(gpa, pages, Encoding::Raw)],
            pages as usize * 4096,
        )
    };
    let cases = [
        ("beyond the first region", raw(32 << 12, 1)),
        ("across its end", raw(31 << 12, 2)),
        ("in the gap", raw(1 << 30, 1)),
        ("beyond all", raw(1 << 40, 1)),
        ("at the end of addresses", raw(u64::MAX << 12, 1)),
        ("between pages", raw(0x801, 1)),
        ("none", raw(0, 0)),
        (
            "zeroes beyond all",
            batch(&[PageRange::new(1 << 40, 1 << 30, Encoding::Zero)], 0),
        ),
        (
            "one that belongs and one beyond all, before anything of them comes",
            batch(
                &[0, 1 << 40].map(|gpa| PageRange::new(gpa, 1, Encoding::Raw)),
                0,
            ),
        ),
        ("garbage", vec![0x77; 32]),
        (
            "pass 7 ends first",
            BatchHeader::pass_end(7).as_bytes().to_vec(),
        ),
    ];
    for (name, bytes) in cases {
        let outcome = play_source(wanted(), |_, data| {
            let _ = data[0].send(&bytes);
        });
        assert_eq!(
            root(&outcome).0,
            "migration.protocol",
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn a_stripe_that_two_streams_carry_is_refused() {
    let negotiate = Negotiate {
        streams: 2,
        ..wanted()
    };
    let outcome = play_source(negotiate, |_, data| {
        for (page, data) in (0..).zip(data) {
            let range = PageRange::new(page << 12, 1, Encoding::Raw);
            let _ = data.send(&batch(&[range], 4096));
        }
    });
    let (id, message) = root(&outcome);
    assert_eq!(id, "migration.protocol", "{outcome:?}");
    assert!(
        message.contains("outside of the RAM of stream"),
        "{message}"
    );
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let region = |gpa, len| RamRegion { gpa, len };
    let with = |ram: Vec<RamRegion>| {
        let mut wanted = wanted();
        wanted.machine.ram = ram;
        wanted
    };
    let many = (0..65).map(|i| region(i << 20, 4096)).collect();
    let cases = [
        ("no RAM", with(vec![])),
        ("too many regions", with(many)),
        ("an empty region", with(vec![region(0, 0)])),
        ("a crooked region", with(vec![region(1, 4096)])),
        (
            "overlapping regions",
            with(vec![region(0, 8192), region(4096, 4096)]),
        ),
        (
            "the wrong order",
            with(vec![region(1 << 20, 4096), region(0, 4096)]),
        ),
        (
            "beyond all addresses",
            with(vec![region(u64::MAX - 4095, 4096)]),
        ),
        (
            "no streams",
            Negotiate {
                streams: 0,
                ..wanted()
            },
        ),
        (
            "too many streams",
            Negotiate {
                streams: 17,
                ..wanted()
            },
        ),
    ];
    for (name, negotiate) in cases {
        let outcome = play_source(negotiate, |_, _| panic!("{name} was accepted"));
        assert_eq!(root(&outcome).0, "migration.protocol", "{name}");
    }
}

#[test]
fn a_source_out_of_turn_never_starts_the_guest() {
    let extents = |extents| Message::Extents(Extents { extents });
    let cases: [(&str, Vec<Message>); 9] = [
        (
            "extents twice",
            vec![message_of(Kind::Extents), message_of(Kind::Extents)],
        ),
        (
            "too many extents",
            vec![extents((0..=1 << 14).map(|i| (i << 12, 4096)).collect())],
        ),
        (
            "extents over each other",
            vec![extents(vec![(0, 8192), (4096, 8192)])],
        ),
        (
            "crooked extents",
            vec![extents(vec![(0, 8192), (12_289, 4096)])],
        ),
        ("commit before the state", vec![Message::Commit]),
        (
            "last pass before the state",
            vec![Message::LastPass(LastPass {
                pass: 0,
                saved: None,
                run_state: None,
                disks: None,
            })],
        ),
        (
            "two states",
            vec![Message::State(vec![1]), Message::State(vec![2])],
        ),
        ("its own answer", vec![Message::Resolution(RAN)]),
        (
            "welcome",
            vec![Message::Welcome(Welcome {
                version: 1,
                token: [0; 16],
                host: None,
                capabilities: None,
                placed: None,
            })],
        ),
    ];
    for (name, messages) in cases {
        let outcome = play_source(wanted(), |control, _| {
            messages.iter().for_each(|message| {
                say(control, message);
            });
        });
        assert_eq!(
            root(&outcome).0,
            "migration.protocol",
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn a_source_that_lives_and_sends_nothing_is_given_up() {
    // Whoever plays the source answers pings until the other side hangs up.
    let outcome = play_source(wanted(), |_, _| {});
    assert_eq!(root(&outcome).0, "migration.no-progress");
}

#[test]
fn a_source_that_stalls_is_given_up() {
    let outcome = play_source(wanted(), |control, data| {
        data[0]
            .send(&BatchHeader::pass_end(1).as_bytes()[..10])
            .unwrap();
        // Nothing is heard from it, pings included, until the other side hangs up.
        while Message::receive(control).is_ok() {}
    });
    let Outcome::Failed(report) = &outcome else {
        panic!("{outcome:?}")
    };
    let root = report.error.as_ref().unwrap().root();
    assert!(
        root.id == "migration.peer-silent" || root.id == "migration.peer-lost",
        "{root:?}"
    );
}

/// Plays a destination: `answer` says what to send for what the source said, `None` hangs up.
fn play_destination(answer: impl Fn(&Message) -> Option<Vec<Message>> + Sync) -> Outcome {
    play_slow_destination(Verify::Stream, Duration::ZERO, answer)
}

/// The same, of one that takes `loading` before it is ready.
fn play_slow_destination(
    verify: Verify,
    loading: Duration,
    answer: impl Fn(&Message) -> Option<Vec<Message>> + Sync,
) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let mut vm = Source::new(64, Guest::Idle, &witness);
    vm.forms = Some("forms".into());
    vm.fill(0, 0, 10);
    let options = source::Options {
        io_timeout: Duration::from_millis(300),
        peer_timeout: Duration::from_millis(300),
        prepare_timeout: Duration::from_millis(600),
        resolve_for: Duration::from_millis(100),
        ..source::Options::new(
            MigrationId::random().unwrap(),
            MigrateRequest {
                streams: Some(1),
                verify,
                ..MigrateRequest::new("unix:/there")
            },
        )
    };
    let journal = MemoryJournal::default();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| serve_slowly(&listen, 1, loading, &answer));
        source::migrate(&vm, &connect, &options, &Steering::new(), &journal)
    });
    if matches!(outcome, Outcome::HandoverUnknown(_)) {
        assert_eq!(witness.running(), (false, false));
        assert!(journal.recorded(options.id).unwrap().is_some());
    } else {
        assert!(vm.is_untouched(), "{outcome:?}");
        assert_eq!(witness.running(), (true, false));
    }
    outcome
}

#[test]
fn a_destination_that_lies_does_not_get_the_guest() {
    let cases: [(&str, &str, Message); 4] = [
        (
            "no digest",
            "migration.digest-mismatch",
            Message::Ready(Ready {
                digest: None,
                disks_digest: None,
                whole_disks: Vec::new(),
                load_ms: 1.0,
            }),
        ),
        (
            "another digest",
            "migration.digest-mismatch",
            Message::Ready(Ready {
                digest: Some("x".repeat(4000)),
                disks_digest: None,
                whole_disks: Vec::new(),
                load_ms: -1.0,
            }),
        ),
        (
            "committed before asked",
            "migration.protocol",
            Message::Resolution(RAN),
        ),
        (
            "negotiated again",
            "migration.protocol",
            message_of(Kind::Negotiated),
        ),
    ];
    for (name, id, lie) in cases {
        let outcome = play_destination(|message| match message {
            Message::LastPass(_) => Some(vec![lie.clone()]),
            Message::Failure(_) => None,
            other => Some(behaved(other)),
        });
        assert_eq!(root(&outcome).0, id, "{name}");
    }
}

#[test]
fn a_destination_that_hangs_up_or_falls_silent_leaves_the_guest_running() {
    for at in ["negotiate", "prepare", "extents", "state"] {
        for is_silent in [false, true] {
            let outcome = play_destination(|message| match message {
                message if message.name() == at => is_silent.then(Vec::new),
                Message::Failure(_) => None,
                other => Some(behaved(other)),
            });
            let (id, _) = root(&outcome);
            let expected = [
                "link.closed",
                "migration.no-answer",
                "migration.peer-silent",
            ];
            assert!(expected.contains(&id), "{at}: {outcome:?}");
        }
    }
}

#[test]
fn an_older_destination_is_not_asked_how_the_state_is_to_be_written() {
    let outcome = play_destination(|message| {
        if let Message::Negotiate(wanted) = message {
            assert_eq!(wanted.state, None);
            return None;
        }
        Some(behaved(message))
    });
    assert_eq!(root(&outcome).0, "link.closed");
}

/// A source that plays to its end, and takes `time` to compare the digests.
fn slow_to_decide(verify: Verify, time: Duration) -> Outcome {
    let options = destination::Options {
        io_timeout: Duration::from_millis(150),
        peer_timeout: Duration::from_millis(300),
        ..destination::Options::default()
    };
    let negotiate = Negotiate { verify, ..wanted() };
    receive_from(&options, negotiate, Point::Loaded, |source| {
        live(&*source.control, time);
        source.say(&Message::Commit);
        source.say(&Message::Finish);
    })
}

#[test]
fn a_source_that_hashes_for_longer_is_waited_for_as_long_as_it_lives() {
    let time = Duration::from_millis(1500);
    let outcome = slow_to_decide(Verify::Full, time);
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    // There is nothing to wait for when nothing is hashed.
    let outcome = slow_to_decide(Verify::Stream, time);
    assert_eq!(root(&outcome).0, "migration.no-answer");
}

#[test]
fn a_destination_that_hashes_for_longer_is_waited_for_as_long_as_it_lives() {
    for (verify, expected) in [
        (Verify::Full, "migration.digest-mismatch"),
        (Verify::Stream, "migration.no-answer"),
    ] {
        let time = Duration::from_millis(1500);
        let outcome = play_slow_destination(verify, time, |message| match message {
            Message::LastPass(_) => Some(vec![message_of(Kind::Ready)]),
            Message::Failure(_) => None,
            other => Some(behaved(other)),
        });
        assert_eq!(root(&outcome).0, expected);
    }
}
