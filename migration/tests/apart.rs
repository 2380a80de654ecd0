//! A link is lost while the guest is copied, and none can be made for now: what strangers, users and the time make of that.

mod double;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use double::players::{PATIENCE, hear, say};
use double::{Destination, Guest, Source, Witness, wait_until};
use migration::journal::MemoryJournal;
use migration::observation::{Observation, Side};
use migration::progress::Event;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, Fault, Injection, MemoryConnect};
use migration::transport::{Connect, Connection, Patience};
use migration::units::Span;
use migration::wire::control::{Answer, Message, Resolution};
use migration::wire::hello::{Hello, Role};
use migration::{MigrationId, Outcome, destination, source};

const STREAMS: u8 = 2;

/// Lets through the connections of one link, and others only once it is open.
struct Doorway {
    network: MemoryConnect,
    passed: AtomicUsize,
    is_open: AtomicBool,
    tried: AtomicUsize,
}

impl Connect for Doorway {
    fn connect(&self, patience: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        let passed = self.passed.fetch_add(1, Ordering::SeqCst);
        if passed > usize::from(STREAMS) && !self.is_open.load(Ordering::SeqCst) {
            self.tried.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.network.connect(patience)
    }

    fn address(&self) -> String {
        self.network.address()
    }
}

/// Both sides have lost the link, and wait.
struct Apart<'a> {
    doorway: &'a Doorway,
    id: MigrationId,
    source: &'a Steering,
    destination: &'a Steering,
}

impl Apart<'_> {
    fn open(&self) {
        self.doorway.is_open.store(true, Ordering::SeqCst);
    }

    /// What the destination answers to a stranger's `hello`.
    fn answers(&self, hello: &Hello) -> Option<Message> {
        let stranger = self.doorway.network.connect(PATIENCE).unwrap();
        stranger.send(&hello.encode()).unwrap();
        hear(&*stranger)
    }

    /// The condition for which a stranger's `hello` is refused.
    #[track_caller]
    fn refuses(&self, hello: &Hello) -> String {
        match self.answers(hello) {
            Some(Message::Failure(why)) => why.id,
            other => panic!("{hello:?}: {other:?}"),
        }
    }
}

fn has_lost(steering: &Steering) -> bool {
    let past = steering.past();
    past.iter()
        .any(|event| matches!(event, Event::LinkLost { .. }))
}

/// Identifiers of an error and of all that explains it.
fn chain(outcome: &Outcome) -> Vec<String> {
    fn collect(error: &Observation, ids: &mut Vec<String>) {
        ids.push(error.id.clone());
        error.causes.iter().for_each(|cause| collect(cause, ids));
    }
    let mut ids = Vec::new();
    if let Some(error) = &outcome.report().error {
        collect(error, &mut ids);
    }
    ids
}

/// Has `play` do something while both are apart, and a new link is tried for `reconnect_for`; checks who has the guest then.
fn while_apart(reconnect_for: Duration, play: impl FnOnce(&Apart<'_>) + Send) -> [Outcome; 2] {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(4000, Guest::Idle, &witness);
    vm.fill(0, 0, 1500);
    let mut into = Destination::new(&witness);
    let (network, listen) = memory::network(&[Injection {
        side: Side::Source,
        frame: 14,
        fault: Fault::Cut,
    }]);
    let doorway = Doorway {
        network,
        passed: AtomicUsize::new(0),
        is_open: AtomicBool::new(false),
        tried: AtomicUsize::new(0),
    };
    let (steering, receives) = (Steering::new(), Steering::new());
    let (ours, theirs) = (MemoryJournal::default(), MemoryJournal::default());
    let request = MigrateRequest {
        streams: Some(STREAMS),
        reconnect_for: Span(reconnect_for),
        ..MigrateRequest::new("unix:/there")
    };
    let options = source::Options::new(MigrationId::random().unwrap(), request);
    let receiving = destination::Options {
        peer_timeout: Duration::from_millis(500),
        ..destination::Options::default()
    };
    let outcomes = std::thread::scope(|scope| {
        let there = scope
            .spawn(|| destination::receive(&listen, &mut into, &receiving, &receives, &theirs));
        scope.spawn(|| {
            /// Whoever plays and fails ends both, which may wait for what does not come then.
            struct Ends<'a>([&'a Steering; 2]);
            impl Drop for Ends<'_> {
                fn drop(&mut self) {
                    if std::thread::panicking() {
                        for steering in self.0 {
                            let _ = steering.cancel();
                        }
                    }
                }
            }
            let _ends = Ends([&steering, &receives]);
            wait_until("both have lost the link", || {
                has_lost(&steering) && has_lost(&receives)
            });
            play(&Apart {
                doorway: &doorway,
                id: options.id,
                source: &steering,
                destination: &receives,
            });
        });
        let here = source::migrate(&vm, &doorway, &options, &steering, &ours);
        [here, there.join().unwrap()]
    });
    if matches!(outcomes[0], Outcome::Completed(_)) {
        assert!(vm.contents() == into.contents(), "memory differs");
        assert_eq!(witness.running(), (false, true));
        assert_eq!(outcomes.each_ref().map(|o| o.report().reconnects), [1, 1]);
    } else {
        assert!(vm.is_untouched(), "{outcomes:?}");
        assert!(into.has_nothing(), "{outcomes:?}");
        assert_eq!(witness.running(), (true, false));
    }
    outcomes
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_guest_runs_on_until_there_is_a_new_link() {
    let [here, there] = while_apart(LONG, |apart| {
        wait_until("it was tried a few times", || {
            apart.doorway.tried.load(Ordering::SeqCst) > 3
        });
        apart.open();
    });
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
    assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
}

#[test]
fn when_the_time_is_over_nothing_is_left_on_either_side() {
    let outcomes = while_apart(Duration::from_millis(300), |_| {});
    for outcome in outcomes {
        let ids = chain(&outcome);
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        assert_eq!(ids[1], "migration.not-reconnected", "{ids:?}");
        assert!(ids.contains(&"migration.peer-lost".into()), "{ids:?}");
    }
}

#[test]
fn nobody_else_is_let_in_meanwhile_and_its_own_source_is() {
    let [here, _] = while_apart(LONG, |apart| {
        let stranger = MigrationId::random().unwrap();
        let hello = |role, id, token| apart.refuses(&Hello::new(role, id, token));
        for id in [stranger, apart.id] {
            assert_eq!(hello(Role::Control, id, [0; 16]), "migration.busy");
            for token in [[0; 16], [9; 16]] {
                assert_eq!(hello(Role::Again, id, token), "migration.not-waiting");
            }
        }
        let data = Hello::new(Role::Data { stream: 0 }, apart.id, [9; 16]);
        assert_eq!(apart.answers(&data), None);
        apart.open();
    });
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
}

#[test]
fn who_asks_meanwhile_hears_never_ran_and_so_it_is() {
    let [here, there] = while_apart(LONG, |apart| {
        let answer = apart.answers(&Hello::new(Role::Resolve, apart.id, [0; 16]));
        let Some(Message::Resolution(Answer { resolution, .. })) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(resolution, Resolution::NeverRan);
        apart.open();
    });
    assert!(!matches!(here, Outcome::Completed(_)), "{here:?}");
    assert!(!matches!(there, Outcome::Completed(_)), "{there:?}");
}

#[test]
fn a_cancel_ends_both() {
    let [here, there] = while_apart(LONG, |apart| {
        apart.open();
        assert!(apart.source.cancel());
    });
    // A link that was made just before is as good a way to tell it.
    assert!(matches!(here, Outcome::Cancelled(_)), "{here:?}");
    let ids = chain(&there);
    assert!(ids.contains(&"migration.cancelled".into()), "{ids:?}");
}

#[test]
fn a_destination_that_ends_meanwhile_leaves_nothing_and_its_source_says_why_it_stays() {
    let [here, there] = while_apart(Duration::from_millis(1500), |apart| {
        assert!(apart.destination.cancel());
    });
    assert!(matches!(there, Outcome::Cancelled(_)), "{there:?}");
    let ids = chain(&here);
    assert_eq!(ids[1], "migration.not-reconnected", "{ids:?}");
}

#[test]
fn the_secret_of_another_source_does_not_end_a_link_that_stands() {
    // The destination waits for its source's prepare, or copies: a stranger with a wrong secret changes nothing.
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let (vm, mut into) = (
        Source::new(4000, Guest::Idle, &witness),
        Destination::new(&witness),
    );
    vm.fill(0, 0, 1500);
    let (steering, receives) = (Steering::new(), Steering::new());
    let journal = MemoryJournal::default();
    let mut request = MigrateRequest::new("unix:/there");
    request.bandwidth = "8MiB/s".parse().unwrap();
    let options = source::Options::new(MigrationId::random().unwrap(), request);
    let [here, there] = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options::default();
            destination::receive(&listen, &mut into, &options, &receives, &journal)
        });
        scope.spawn(|| {
            wait_until("pages travel", || {
                steering
                    .past()
                    .iter()
                    .any(|event| matches!(event, Event::Progress { .. }))
            });
            let stranger = connect.connect(PATIENCE).unwrap();
            let hello = Hello::new(Role::Again, options.id, [9; 16]);
            stranger.send(&hello.encode()).unwrap();
            let answer = hear(&*stranger);
            assert!(matches!(answer, Some(Message::Failure(_))), "{answer:?}");
            say(&*stranger, &Message::Ping(1));
        });
        let ours = MemoryJournal::default();
        let here = source::migrate(&vm, &connect, &options, &steering, &ours);
        if !matches!(here, Outcome::Completed(_)) {
            receives.cancel();
        }
        [here, there.join().unwrap()]
    });
    for outcome in [here, there] {
        assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        assert_eq!(outcome.report().reconnects, 0);
    }
}
