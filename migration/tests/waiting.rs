//! A destination that waits for a guest: strangers and refusals cost it nothing, and a source that lost
//! its answer is told what became of its guest, by itself.

mod double;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use double::{Destination, Guest, Refuse, Source, Witness, ends_within, wait_until};
use migration::destination::{self, Waiting, wait_for_guest};
use migration::journal::{Decision, FileJournal, Journal, MemoryJournal};
use migration::observation::Side;
use migration::progress::Report;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, Fault, Injection, MemoryConnect, MemoryListen};
use migration::transport::{Connect, Connection, Patience, Piece, Within, gather};
use migration::wire::control::{Message, Resolution};
use migration::wire::hello::{Hello, Role};
use migration::{MigrationId, Outcome, source};

const PATIENCE: Patience<'static> = Patience {
    timeout: Duration::from_secs(5),
    give_up: &|| false,
};

/// The handles that were given out, and how many of them failed and left it waiting.
#[derive(Default)]
struct Host {
    controls: Mutex<Vec<Arc<Steering>>>,
    failures: AtomicUsize,
    leaving: AtomicBool,
}

impl Host {
    fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        if let Some(last) = self.controls.lock().unwrap().last() {
            last.cancel();
        }
    }

    fn failures(&self) -> usize {
        self.failures.load(Ordering::SeqCst)
    }
}

impl Waiting for Host {
    fn next(&self) -> Arc<Steering> {
        let control = Steering::new();
        if self.leaving.load(Ordering::SeqCst) {
            control.cancel();
        }
        self.controls.lock().unwrap().push(control.clone());
        control
    }

    fn goes_on(&self, report: &Report) {
        assert!(report.error.is_some(), "no cause");
        self.failures.fetch_add(1, Ordering::SeqCst);
    }
}

fn hasty() -> destination::Options {
    destination::Options {
        io_timeout: Duration::from_millis(500),
        peer_timeout: Duration::from_millis(500),
        hello_timeout: Duration::from_millis(300),
        ..destination::Options::default()
    }
}

fn moves() -> source::Options {
    source::Options {
        ..source::Options::new(
            MigrationId::random().unwrap(),
            MigrateRequest {
                streams: Some(1),
                ..MigrateRequest::new("unix:/there")
            },
        )
    }
}

/// Lets `play` play the source while `into` waits for a guest; how the wait ended.
fn waits(
    listen: &MemoryListen,
    into: &mut Destination,
    options: &destination::Options,
    journal: &dyn Journal,
    play: impl FnOnce(&Host),
) -> Outcome {
    let (host, over) = (Host::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let outcome = wait_for_guest(listen, into, options, &host, journal);
            // Whoever has the guest answers for it.
            if matches!(outcome, Outcome::Completed(_)) {
                destination::answer_resolve(listen, journal, &over).unwrap();
            }
            outcome
        });
        let played = catch_unwind(AssertUnwindSafe(|| play(&host)));
        over.store(true, Ordering::SeqCst);
        if let Err(panic) = played {
            // It is told, and nobody waits for a destination that waits on.
            host.leave();
            resume_unwind(panic);
        }
        ends_within(&there, Duration::from_secs(30));
        // One that waits on though it should not have is told as that, not waited for.
        host.leave();
        there.join().unwrap()
    })
}

/// Moves the guest to the destination, which must take it.
fn comes(vm: &Source, connect: &dyn Connect) {
    let journal = MemoryJournal::default();
    let outcome = source::migrate(vm, connect, &moves(), &Steering::new(), &journal);
    assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
}

/// A network that lets only the beginning of the commit through, once.
struct CutsCommit {
    network: MemoryConnect,
    passes: usize,
    cut: Arc<AtomicBool>,
}

struct CutsConnection {
    inner: Box<dyn Connection>,
    passes: usize,
    cut: Arc<AtomicBool>,
}

impl Connect for CutsCommit {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(CutsConnection {
            inner: self.network.connect(patience)?,
            passes: self.passes,
            cut: self.cut.clone(),
        }))
    }

    fn address(&self) -> String {
        self.network.address()
    }
}

impl CutsConnection {
    fn cut_commit(&self, frame: &[u8]) -> io::Result<()> {
        let is_commit = frame == Message::Commit.encode().unwrap();
        if is_commit && !self.cut.swap(true, Ordering::SeqCst) {
            self.inner.send(&frame[..self.passes])?;
            self.inner.shutdown();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl Connection for CutsConnection {
    fn send_pieces(&self, bytes: &[u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        self.cut_commit(&gather(bytes, pieces)?)?;
        self.inner.send_pieces(bytes, pieces)
    }

    fn send_within(&self, bytes: &[u8], within: Within) -> io::Result<()> {
        self.cut_commit(bytes)?;
        self.inner.send_within(bytes, within)
    }

    fn receive_within(&self, bytes: &mut [u8], within: Within) -> io::Result<()> {
        self.inner.receive_within(bytes, within)
    }

    fn receive_pieces(&self, bytes: &mut [u8], pieces: &[Piece<'_>]) -> io::Result<()> {
        self.inner.receive_pieces(bytes, pieces)
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
fn a_cut_at_any_byte_of_the_commit_heals_by_itself() {
    let length = Message::Commit.encode().unwrap().len();
    for passes in 0..=length {
        let witness: Arc<Witness> = Arc::default();
        let vm = Source::new(64, Guest::Idle, &witness);
        let mut into = Destination::new(&witness);
        let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
        let (network, listen) = memory::network(&[]);
        let connect = CutsCommit {
            network,
            passes,
            cut: Arc::default(),
        };
        let mut ran = false;
        let there = waits(&listen, &mut into, &hasty(), &theirs, |host| {
            let here = source::migrate(&vm, &connect, &moves(), &Steering::new(), &ours);
            match here {
                Outcome::Completed(_) => ran = true,
                Outcome::Failed(_) => {
                    assert!(vm.is_untouched(), "{passes} bytes");
                    assert_eq!(witness.running(), (true, false), "{passes} bytes");
                    wait_until("it waits on", || host.failures() == 1);
                    comes(&vm, &connect);
                }
                other => panic!("{passes} bytes: {other:?}"),
            }
        });
        assert!(
            matches!(there, Outcome::Completed(_)),
            "{passes}: {there:?}"
        );
        // Whole, it may be read before the end of the connection is seen.
        assert!(!ran || passes == length, "{passes} bytes");
        assert_eq!(witness.running(), (false, true), "{passes} bytes");
    }
}

#[test]
fn a_source_that_is_in_doubt_is_answered_as_soon_as_it_gets_through() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    let mut into = Destination::new(&witness);
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let (network, listen) = memory::network(&[]);
    let connect = CutsCommit {
        network,
        passes: 10,
        cut: Arc::default(),
    };
    let options = source::Options {
        // It does not ask while it is about the migration itself.
        resolve_for: Duration::ZERO,
        ..moves()
    };
    let id = options.id;
    // The link is broken for the first question.
    let (nowhere, _) = memory::network(&[Injection {
        side: Side::Source,
        frame: 0,
        fault: Fault::Partition,
    }]);
    waits(&listen, &mut into, &hasty(), &theirs, |host| {
        let breaks = Breaks {
            first: &connect,
            then: &nowhere,
        };
        let here = source::migrate(&vm, &breaks, &options, &Steering::new(), &ours);
        assert!(matches!(here, Outcome::HandoverUnknown(_)), "{here:?}");
        assert_eq!(witness.running(), (false, false));
        // It gave up at once and holds nothing, though nobody has asked yet.
        wait_until("it waits on", || host.failures() == 1);
        assert_eq!(theirs.decision(id).unwrap(), Some(Decision::GiveUp));
        let answer = source::resolve(&connect, id, &ours).unwrap();
        assert_eq!(answer, Resolution::NeverRan);
        source::settle(&vm, id, answer, &ours).unwrap();
        assert_eq!(witness.running(), (true, false));
        host.leave();
    });
    assert!(into.has_nothing());
}

/// A way to the destination for the migration, and none for questions.
struct Breaks<'a> {
    first: &'a CutsCommit,
    then: &'a dyn Connect,
}

impl Connect for Breaks<'_> {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        if self.first.cut.load(Ordering::SeqCst) {
            return self
                .then
                .connect(patience)
                .and(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        self.first.connect(patience)
    }

    fn address(&self) -> String {
        self.first.address()
    }
}

#[test]
fn whatever_fails_before_the_machine_is_built_leaves_it_waiting() {
    let witness: Arc<Witness> = Arc::default();
    let mut into = Destination::new(&witness);
    let journal = MemoryJournal::default();
    let (connect, listen) = memory::network(&[]);
    let there = waits(&listen, &mut into, &hasty(), &journal, |host| {
        let hello = || Hello::new(Role::Control, MigrationId::random().unwrap(), [0; 16]).encode();
        let said = [
            Vec::new(),
            vec![0xa5; 500],
            Message::Commit.encode().unwrap(),
            Message::Prepare.encode().unwrap(),
        ];
        for (number, said) in said.iter().enumerate() {
            let control = connect.connect(PATIENCE).unwrap();
            control.send(&hello()).unwrap();
            control.send(said).unwrap();
            drop(control);
            wait_until("it failed", || host.failures() == number + 1);
        }
        comes(&Source::new(64, Guest::Idle, &witness), &connect);
    });
    assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
    assert_eq!(into.started, 1);
}

#[test]
fn a_machine_that_cannot_be_had_leaves_it_waiting_and_one_that_was_built_in_vain_does_not() {
    for (refuse, stays) in [
        (Refuse::Negotiate, true),
        (Refuse::Prepare, true),
        (Refuse::LoadState, false),
    ] {
        let witness: Arc<Witness> = Arc::default();
        let vm = Source::new(64, Guest::Idle, &witness);
        let mut into = Destination::new(&witness);
        into.refuse = refuse;
        let journal = MemoryJournal::default();
        let (connect, listen) = memory::network(&[]);
        let there = waits(&listen, &mut into, &hasty(), &journal, |host| {
            let ours = MemoryJournal::default();
            let here = source::migrate(&vm, &connect, &moves(), &Steering::new(), &ours);
            assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
            if stays {
                wait_until("it waits on", || host.failures() == 1);
                host.leave();
            }
        });
        let ended_by_itself = matches!(there, Outcome::Failed(_));
        assert_eq!(ended_by_itself, !stays, "{there:?}");
        assert!(into.has_nothing());
    }
}

#[test]
fn a_source_that_never_asks_is_waited_for_no_longer_than_promised() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(64, Guest::Idle, &witness);
    let mut into = Destination::new(&witness);
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let (network, listen) = memory::network(&[]);
    let connect = CutsCommit {
        network,
        passes: 3,
        cut: Arc::default(),
    };
    let (nowhere, _) = memory::network(&[]);
    let options = destination::Options {
        answer_for: Duration::from_millis(100),
        ..hasty()
    };
    let there = waits(&listen, &mut into, &options, &theirs, |_| {
        let breaks = Breaks {
            first: &connect,
            then: &nowhere,
        };
        let options = source::Options {
            resolve_for: Duration::ZERO,
            ..moves()
        };
        let here = source::migrate(&vm, &breaks, &options, &Steering::new(), &ours);
        assert!(matches!(here, Outcome::HandoverUnknown(_)), "{here:?}");
    });
    let Outcome::Failed(report) = there else {
        panic!("{there:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "link.closed");
    assert!(into.has_nothing());
}

#[test]
fn strangers_who_ask_leave_no_record() {
    let directory = tempfile::tempdir().unwrap();
    let journal = FileJournal::open(directory.path()).unwrap();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let before = files();
    let ours = MemoryJournal::default();
    let (connect, listen) = memory::network(&[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| destination::answer_resolve(&listen, &journal, &stop).unwrap());
        for _ in 0..100 {
            let id = MigrationId::random().unwrap();
            let record = migration::journal::SourceRecord {
                handover: migration::journal::Handover::CommitSent,
                destination: "memory".into(),
                host: Some(journal.identity()),
                overlay: None,
            };
            ours.record(id, &record).unwrap();
            let answer = source::resolve(&connect, id, &ours).unwrap();
            assert_eq!(answer, Resolution::NeverRan);
            // What was answered so cannot be committed any more.
            let late = journal.decide(id, Decision::Commit).unwrap();
            assert_eq!(late, Decision::GiveUp);
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(files(), before);
}
