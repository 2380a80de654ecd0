//! The answer to a commit is lost and another host answers at the address: it is not believed.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use double::players::{one_stream_unverified, say, take_pages};
use double::{Guest, Source, Witness};
use migration::destination;
use migration::journal::{Decision, Journal, MemoryJournal};
use migration::observation::Side;
use migration::steering::Steering;
use migration::transport::Listen;
use migration::transport::memory::{self, MemoryListen};
use migration::wire::control::{Message, Negotiated, Prepared, Ready, Resolution, Welcome};
use migration::wire::hello::HELLO_LEN;
use migration::{HostId, MigrationId, Outcome, source};

/// Plays the host `host` until the commit has come, which it does not answer.
fn take_until_commit(listen: &MemoryListen, host: HostId) {
    let accept = || listen.accept(Duration::from_secs(5)).unwrap().unwrap();
    let control = &*accept();
    control.receive(&mut [0; HELLO_LEN]).unwrap();
    let welcome = Welcome {
        version: 2,
        token: [9; 16],
        host: Some(host),
        capabilities: None,
        placed: None,
    };
    say(control, &Message::Welcome(welcome));
    std::thread::scope(|scope| {
        loop {
            let answer = match Message::receive(control).unwrap() {
                Message::Ping(number) => Message::Pong(number),
                Message::Negotiate(_) => Message::Negotiated(Negotiated::default()),
                Message::Prepare => Message::Prepared(Prepared {
                    journal_ms: 0.0,
                    hash_bytes_per_s: None,
                    disks: Vec::new(),
                    kept_disks: Vec::new(),
                }),
                Message::Extents(_) => {
                    scope.spawn(|| take_pages(&*accept(), control));
                    continue;
                }
                Message::LastPass(_) => Message::Ready(Ready {
                    digest: None,
                    disks_digest: None,
                    whole_disks: Vec::new(),
                    load_ms: 0.0,
                }),
                Message::Commit => break,
                _ => continue,
            };
            say(control, &answer);
        }
        control.shutdown();
    });
}

/// Loses the answer of `given` to a commit, while `answers` is asked at its address.
fn lose_answer(
    vm: &Source,
    id: MigrationId,
    ours: &dyn Journal,
    given: HostId,
    answers: &dyn Journal,
) -> Outcome {
    let (connect, listen) = memory::network(&[]);
    let stop = AtomicBool::new(false);
    let options = source::Options {
        resolve_for: Duration::from_millis(600),
        ..source::Options::new(id, one_stream_unverified())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            take_until_commit(&listen, given);
            destination::answer_resolve(&listen, answers, &stop).unwrap();
        });
        let outcome = source::migrate(vm, &connect, &options, &Steering::new(), ours);
        stop.store(true, Ordering::Release);
        outcome
    })
}

fn ask(id: MigrationId, ours: &dyn Journal, answers: &dyn Journal) -> Result<Resolution, String> {
    let (connect, listen) = memory::network(&[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| destination::answer_resolve(&listen, answers, &stop).unwrap());
        let answer = source::resolve(&connect, id, ours);
        stop.store(true, Ordering::Release);
        answer.map_err(|error| format!("{} {error}", error.id()))
    })
}

fn commits(journal: &dyn Journal, id: MigrationId) {
    journal.reserve(id, Side::Destination).unwrap();
    let decision = journal.decide(id, Decision::Commit).unwrap();
    assert_eq!(decision, Decision::Commit);
}

#[test]
fn only_the_host_that_was_given_the_guest_says_whether_it_ran() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    let (ours, theirs, other) = (
        MemoryJournal::default(),
        MemoryJournal::default(),
        MemoryJournal::default(),
    );
    let id = MigrationId([3; 16]);
    commits(&theirs, id);
    let outcome = lose_answer(&vm, id, &ours, theirs.identity(), &other);
    let Outcome::HandoverUnknown(report) = outcome else {
        panic!("{outcome:?}")
    };
    let root = report.error.unwrap().root().clone();
    assert_eq!(root.id, "migration.wrong-host");
    for host in [theirs.identity(), other.identity()] {
        assert!(root.message.contains(&host.to_string()), "{root}");
    }
    assert_eq!(witness.running(), (false, false), "the guest waits");

    let refused = ask(id, &ours, &other).unwrap_err();
    assert!(refused.starts_with("migration.wrong-host"), "{refused}");
    assert_eq!(ask(id, &ours, &theirs).unwrap(), Resolution::Ran);
}

#[test]
fn the_right_host_is_believed_at_once() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let id = MigrationId([4; 16]);
    commits(&theirs, id);
    let outcome = lose_answer(&vm, id, &ours, theirs.identity(), &theirs);
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
    assert!(vm.released.load(Ordering::SeqCst));
}

#[test]
fn without_a_record_of_whom_the_guest_was_given_to_nobody_is_asked() {
    let id = MigrationId([5; 16]);
    let refused = ask(id, &MemoryJournal::default(), &MemoryJournal::default());
    assert!(refused.unwrap_err().starts_with("migration.no-record"));
}
