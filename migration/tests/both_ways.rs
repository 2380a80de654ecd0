//! A data connection carries frames both ways: what a destination says there, or that it ends, is seen by
//! the source whatever it is doing.

mod double;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use double::players::{
    PATIENCE, behaved, hear, message_of, one_stream_unverified, say, take_pages, welcome,
};
use double::{Guest, Source, Witness, ends_within};
use migration::journal::MemoryJournal;
use migration::steering::Steering;
use migration::transport::memory::{self, MemoryListen};
use migration::transport::{Connection, Listen};
use migration::wire::batch::{BATCH_LEN, BatchHeader, BatchKind, Encoding, PageRange, RANGE_LEN};
use migration::wire::control::Message;
use migration::wire::hello::HELLO_LEN;
use migration::wire::kind::Kind;
use migration::{MigrationId, Outcome, source};
use zerocopy::{FromBytes, IntoBytes};

/// Longer than a test waits.
const FOR_EVER: Duration = Duration::from_secs(600);

/// What a source is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// That the first pass is placed.
    Placed,
    /// That the state is loaded.
    Ready,
    /// That the guest runs at the destination.
    Committed,
}

/// What a destination does to a data connection.
type Does<'a> = &'a (dyn Fn(&dyn Connection) + Sync);

/// Takes the pages of one pass, to its end.
fn take_pass(data: &dyn Connection) {
    data.receive(&mut [0; HELLO_LEN]).unwrap();
    let mut header = [0; BATCH_LEN];
    loop {
        data.receive(&mut header).unwrap();
        let read = BatchHeader::read_from_bytes(&header).unwrap();
        let BatchKind::Pages { ranges, payload } = read.kind().unwrap() else {
            return;
        };
        let mut rest = vec![0; ranges * RANGE_LEN + payload as usize];
        data.receive(&mut rest).unwrap();
    }
}

/// Plays a destination that does `does` to the only data connection when the source waits `at`; its control
/// connection stands until the source ends it.
fn serve(listen: &MemoryListen, at: At, does: Does<'_>) {
    let accept = || listen.accept(PATIENCE.timeout).unwrap().unwrap();
    let control: Arc<dyn Connection> = accept().into();
    // It does not hang up before the source: that would be seen too.
    control.set_io_timeout(FOR_EVER).unwrap();
    control.receive(&mut [0; HELLO_LEN]).unwrap();
    say(&*control, &Message::Welcome(welcome(1)));
    let mut data: Option<Arc<dyn Connection>> = None;
    thread::scope(|scope| {
        while let Some(message) = hear(&*control) {
            for answer in behaved(&message) {
                say(&*control, &answer);
            }
            let waits = match message {
                Message::Extents(_) => At::Placed,
                Message::LastPass(_) => At::Ready,
                Message::Commit => At::Committed,
                _ => continue,
            };
            if waits == At::Placed {
                let connection: Arc<dyn Connection> = accept().into();
                data = Some(connection.clone());
                if at == At::Placed {
                    take_pass(&*connection);
                } else {
                    let control = control.clone();
                    scope.spawn(move || take_pages(&*connection, &*control));
                }
            }
            if waits == at {
                does(data.as_deref().unwrap());
            }
            match waits {
                At::Ready if at != At::Ready => say(&*control, &message_of(Kind::Ready)),
                At::Committed => say(&*control, &message_of(Kind::Committed)),
                _ => continue,
            };
        }
        if let Some(data) = data {
            data.shutdown();
        }
    });
}

/// How a migration ends whose destination does `does` `at` a moment. The source's own patience is longer than
/// this waits.
fn migrate(at: At, does: Does<'_>) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    vm.fill(0, 0, 10);
    let options = source::Options {
        io_timeout: FOR_EVER,
        peer_timeout: FOR_EVER,
        prepare_timeout: FOR_EVER,
        resolve_for: Duration::ZERO,
        ..source::Options::new(MigrationId::random().unwrap(), one_stream_unverified())
    };
    let control = Steering::new();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| serve(&listen, at, does));
        let journal = MemoryJournal::default();
        let (vm, connect, options, control) = (&vm, &connect, &options, &control);
        let here = scope.spawn(move || source::migrate(vm, connect, options, control, &journal));
        let ended = ends_within(&here, Duration::from_secs(60));
        control.cancel();
        let outcome = here.join().unwrap();
        assert!(ended, "it was not seen {at:?}: {outcome:?}");
        outcome
    });
    let moved = matches!(outcome, Outcome::Completed(_));
    assert_eq!(witness.running(), (!moved, false), "{outcome:?}");
    assert_eq!(vm.is_untouched(), !moved);
    outcome
}

/// The identifier and the text of why a migration failed.
fn root(outcome: &Outcome) -> (&str, &str) {
    let Outcome::Failed(report) = outcome else {
        panic!("{outcome:?}")
    };
    let root = report.error.as_ref().unwrap().root();
    (&root.id, &root.message)
}

#[test]
fn the_end_of_a_data_connection_ends_the_migration_and_the_guest_stays() {
    for at in [At::Placed, At::Ready] {
        let outcome = migrate(at, &|data| data.shutdown());
        assert_eq!(root(&outcome).0, "link.closed", "{at:?}: {outcome:?}");
    }
}

#[test]
fn what_no_source_takes_on_a_data_connection_is_told() {
    let pages = BatchHeader::of(1, &[PageRange::new(0, 1, Encoding::Zero)]);
    let end = BatchHeader::pass_end(1);
    let cases: [(&str, &[u8]); 3] = [
        ("garbage", &[0x77; 64]),
        ("pages", pages.as_bytes()),
        ("the end of a pass", end.as_bytes()),
    ];
    for at in [At::Placed, At::Ready] {
        for (name, bytes) in cases {
            let outcome = migrate(at, &|data| data.send(bytes).unwrap());
            let (id, message) = root(&outcome);
            assert_eq!(id, "migration.protocol", "{name} {at:?}: {outcome:?}");
            assert!(message.contains("data connection 0"), "{message}");
        }
    }
}

#[test]
fn after_the_commit_a_data_connection_may_end_before_the_answer() {
    let does: [Does<'_>; 2] = [&|data| data.shutdown(), &|data| {
        data.send(&[0x77; 64]).unwrap();
    }];
    for does in does {
        let outcome = migrate(At::Committed, does);
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    }
}
