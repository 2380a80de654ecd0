//! A destination that gives up right after it was ready, and is gone before it can be asked.

mod double;

use std::sync::Arc;
use std::time::Duration;

use double::players::{behaved, message_of, one_stream_unverified, serve};
use double::{Guest, Source, Witness};
use migration::journal::MemoryJournal;
use migration::steering::Steering;
use migration::transport::memory;
use migration::wire::control::{Answer, Message, Resolution};
use migration::wire::kind::Kind;
use migration::{HostId, MigrationId, Outcome, source};

/// That it never ran, as the played host says.
fn never_ran() -> Message {
    Message::Resolution(Answer {
        resolution: Resolution::NeverRan,
        host: Some(HostId([3; 16])),
    })
}

/// How it ends when a destination says `with_ready` when it has loaded everything, and why once the commit has come.
fn gives_up(with_ready: &[Message]) {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    let id = MigrationId::random().unwrap();
    let options = source::Options {
        resolve_for: Duration::from_millis(100),
        ..source::Options::new(id, one_stream_unverified())
    };
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            serve(&listen, 2, &|message| match message {
                Message::LastPass(_) => Some(with_ready.to_vec()),
                Message::Commit => Some(vec![never_ran(), message_of(Kind::Failure)]),
                Message::Failure(_) | Message::Finish => None,
                other => Some(behaved(other)),
            });
        });
        let journal = MemoryJournal::default();
        source::migrate(&vm, &connect, &options, &Steering::new(), &journal)
    });
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert_eq!(witness.running(), (true, false));
}

#[test]
fn what_it_says_with_ready_is_not_missed() {
    for _ in 0..5 {
        gives_up(&[message_of(Kind::Ready), never_ran()]);
    }
}

#[test]
fn what_it_says_to_the_commit_is_not_missed() {
    gives_up(&[message_of(Kind::Ready)]);
}
