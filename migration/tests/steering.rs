//! Cancel, time-outs, limits, refusals and strangers.

mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use double::scene::{HOT, SLOW, Scene, ignore};
use double::{Destination, Guest, Refuse, Source, Witness, wait_until};
use migration::journal::{Decision, Journal, MemoryJournal};
use migration::observation::Side;
use migration::progress::{Event, Limits, Phase, TimeoutAction};
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::memory::{self, MemoryConnect};
use migration::transport::{Connect, Patience};
use migration::units::Span;
use migration::wire::hello::{Hello, Role};
use migration::{MigrationId, Outcome, destination, source};

#[test]
fn cancel_in_any_phase_leaves_the_guest_where_it_was() {
    for at in [
        Phase::Negotiate,
        Phase::Prepare,
        Phase::Precopy,
        Phase::StopAndCopy,
        Phase::Ready,
    ] {
        for _ in 0..20 {
            let mut scene = Scene::new(HOT);
            let [here, _] = scene.run(|steering, events| {
                let is_there =
                    |event: &Event| matches!(event, Event::Phase { phase } if *phase == at);
                if events.iter().any(|event| is_there(&event)) {
                    steering.cancel();
                }
            });
            match here {
                Outcome::Cancelled(report) => {
                    assert_eq!(report.status, "cancelled");
                    scene.assert_kept();
                }
                // The cancel came too late to be granted.
                Outcome::Completed(_) => assert_eq!(scene.witness.running(), (false, true)),
                other => panic!("{at:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn cancel_is_refused_once_it_has_ended() {
    let mut scene = Scene::new(Guest::Idle);
    let [here, there] = scene.run(|steering, events| {
        assert!(matches!(events.iter().last(), Some(Event::Completed(_))));
        assert!(!steering.cancel());
    });
    assert!(matches!(
        (here, there),
        (Outcome::Completed(_), Outcome::Completed(_))
    ));
}

#[test]
fn a_guest_that_does_not_converge_is_kept_when_the_time_is_over() {
    let mut scene = Scene::new(HOT);
    scene.limit(SLOW);
    scene.options.request.timeout = Some(Span(Duration::from_millis(900)));
    let [here, there] = scene.run(ignore);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.timed-out");
    let Outcome::Failed(report) = there else {
        panic!("{there:?}")
    };
    assert_eq!(
        report.error.unwrap().root().id,
        "migration.timed-out",
        "the peer is told why"
    );
    scene.assert_kept();
}

#[test]
fn a_guest_that_does_not_converge_is_stopped_and_moved_if_asked_for() {
    let mut scene = Scene::new(HOT);
    scene.limit(SLOW);
    scene.options.request.timeout = Some(Span(Duration::from_millis(300)));
    scene.options.request.on_timeout = TimeoutAction::Stop;
    let [here, _] = scene.run(ignore);
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
    assert_eq!(scene.witness.running(), (false, true));
    assert!(scene.vm.contents() == scene.into.contents());
}

#[test]
fn new_limits_act_at_once() {
    let mut scene = Scene::new(HOT);
    scene.limit(Limits {
        bandwidth: Some(64 << 10),
        ..SLOW
    });
    let began = Instant::now();
    let [here, _] = scene.run(|steering, events| {
        // At that rate the first pass alone would take a minute.
        let _ = events
            .iter()
            .find(|event| matches!(event, Event::Progress { .. }));
        steering.set_limits(Limits {
            downtime: Duration::from_secs(5),
            bandwidth: None,
        });
    });
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_plan_changes_nothing() {
    let mut scene = Scene::new(HOT);
    scene.options.request.plan = true;
    let [here, there] = scene.run(ignore);
    assert!(matches!(here, Outcome::Planned(_)), "{here:?}");
    assert!(
        matches!(there, Outcome::Cancelled(_)),
        "it went on listening: {there:?}"
    );
    scene.assert_kept();
}

#[test]
fn whatever_a_vm_refuses_the_guest_stays_and_both_sides_know_why() {
    use Refuse::*;
    for refuse in [
        Describe,
        OfferState,
        AgreeOnState,
        OfferDisks,
        StartLog,
        FlushDisks,
        FetchDirty,
        ClearDirty,
        Pause,
        SaveState,
        Negotiate,
        ChooseState,
        Prepare,
        Ram,
        LoadState,
        Start,
    ] {
        let mut scene = Scene::new(Guest::Idle);
        (scene.vm.refuse, scene.into.refuse) = (refuse, refuse);
        let [here, there] = scene.run(ignore);
        let Outcome::Failed(report) = here else {
            panic!("{refuse:?}: {here:?}")
        };
        // Nobody listens any more when the destination has failed: the source must not have to ask.
        assert_eq!(report.warnings, [], "{refuse:?}");
        let root = report.error.unwrap().root().id.clone();
        assert_eq!(root, "test.refused", "{refuse:?} at the source");
        if refuse != Describe {
            let Outcome::Failed(report) = there else {
                panic!("{refuse:?}: {there:?}")
            };
            let root = report.error.unwrap().root().id.clone();
            assert_eq!(root, "test.refused", "{refuse:?} at the destination");
        }
        scene.assert_kept();
    }
}

#[test]
fn how_the_state_is_written_is_agreed_on_before_anything_is_built() {
    for plan in [false, true] {
        let mut scene = Scene::new(Guest::Idle);
        scene.options.request.plan = plan;
        scene.vm.forms = Some("old, new".into());
        scene.into.chooses = Some("new".into());
        scene.run(ignore);
        assert_eq!(scene.into.offers, [Some("old, new".to_owned())]);
        let agreed = scene.vm.agreed.lock().unwrap().clone();
        assert_eq!(agreed, [Some("new".to_owned())]);
    }
}

#[test]
fn a_state_beyond_the_limit_is_refused() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.state = vec![1; (64 << 20) + 1];
    let [here, _] = scene.run(ignore);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.state-too-large");
    scene.assert_kept();
}

#[test]
fn untouched_memory_costs_nothing_on_either_side() {
    let witness = Arc::default();
    let pages = 1 << 18;
    let vm = Source::new(pages, Guest::Idle, &witness);
    vm.fill(0, 1000, 3);
    vm.fill(1, 5000, 3);
    let mut scene = Scene {
        into: Destination::new(&witness),
        vm,
        witness,
        ..Scene::new(Guest::Idle)
    };
    let [here, _] = scene.run(ignore);
    let Outcome::Completed(report) = here else {
        panic!("{here:?}")
    };
    assert!(report.verified);
    assert!(report.wire_bytes < 100 << 10, "{} bytes", report.wire_bytes);
    assert!(
        scene.into.allocated() <= 8 * 4096,
        "{} bytes",
        scene.into.allocated()
    );
    assert!(
        report.encodings["hole"].pages >= pages - 8,
        "{:?}",
        report.encodings
    );
}

fn raw(connect: &MemoryConnect, bytes: &[u8]) -> Box<dyn migration::transport::Connection> {
    let patience = Patience {
        timeout: Duration::from_secs(1),
        give_up: &|| false,
    };
    let connection = connect.connect(patience).unwrap();
    connection.send(bytes).unwrap();
    connection
}

#[test]
fn strangers_are_refused_and_the_guest_still_comes_in() {
    let (connect, listen) = memory::network(&[]);
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(200, Guest::Idle, &witness);
    vm.fill(0, 0, 50);
    let mut into = Destination::new(&witness);
    let id = MigrationId::random().unwrap();
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let journal = MemoryJournal::default();
            let options = destination::Options::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        let mut old = Hello::new(Role::Control, id, [0; 16]);
        (old.version, old.min_version) = (9, 9);
        let strangers = [
            raw(&connect, b"GET / HTTP/1.1\r\n\r\n"),
            raw(&connect, &[0xff; 4096]),
            raw(&connect, b"vm"),
            raw(&connect, b""),
            raw(&connect, &old.encode()),
            raw(
                &connect,
                &Hello::new(Role::Data { stream: 0 }, id, [7; 16]).encode(),
            ),
        ];
        let options = source::Options::new(id, MigrateRequest::new("unix:/there"));
        let here = source::migrate(
            &vm,
            &connect,
            &options,
            &Steering::new(),
            &MemoryJournal::default(),
        );
        assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
        drop(strangers);
        assert!(matches!(there.join().unwrap(), Outcome::Completed(_)));
    });
    assert!(vm.contents() == into.contents());
}

#[test]
fn a_migration_that_was_given_up_cannot_come_again() {
    let mut scene = Scene::new(Guest::Idle);
    let id = scene.options.id;
    scene.journal.reserve(id, Side::Destination).unwrap();
    scene.journal.decide(id, Decision::GiveUp).unwrap();
    let [here, _] = scene.run(ignore);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.given-up");
    scene.assert_kept();
}

#[test]
fn a_panic_in_a_stream_is_an_error_of_the_migration() {
    let mut scene = Scene::new(Guest::Idle);
    scene.vm.refuse = Refuse::ClearDirtyByPanic;
    let [here, there] = scene.run(ignore);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    assert_eq!(report.error.unwrap().root().id, "migration.worker");
    assert!(matches!(there, Outcome::Failed(_)), "{there:?}");
    scene.assert_kept();
}

#[test]
fn events_are_replayed_to_who_comes_late() {
    let mut scene = Scene::new(Guest::Idle);
    let steering = std::sync::Mutex::new(None);
    let id = scene.options.id;
    scene.run(|handle, events| {
        let live: Vec<Event> = events.iter().collect();
        wait_until("the last event", || {
            matches!(handle.last_event(), Some(Event::Completed(_)))
        });
        let replayed: Vec<Event> = handle.subscribe().iter().collect();
        assert_eq!(handle.id(), Some(id));
        *steering.lock().unwrap() = Some((live, replayed));
    });
    let (live, replayed) = steering.into_inner().unwrap().unwrap();
    let told = |events: &[Event]| {
        events
            .iter()
            .filter(|e| !matches!(e, Event::Progress { .. }))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&live), told(&replayed));
    assert!(scene.vm.released.load(Ordering::SeqCst));
    assert!(scene.vm.memory_released.load(Ordering::SeqCst));
}
