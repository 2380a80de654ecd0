//! A panic of the VM at the destination: before the commit nothing is left of the guest there, after it nothing is
//! undone, as the guest may run.

mod double;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use double::scene::Scene;
use double::{Guest, Refuse};
use migration::journal::{Decision, Journal, MemoryJournal};
use migration::steering::Steering;
use migration::transport::memory;
use migration::{Outcome, destination, source};

/// Moves a guest to a destination that panics; how that ended at the source.
fn migrate(scene: &mut Scene) -> Outcome {
    scene.options.resolve_for = Duration::from_millis(100);
    let Scene {
        vm,
        into,
        options,
        journal,
        ..
    } = scene;
    let (connect, listen) = memory::network(&[]);
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            let (options, steering) = (destination::Options::default(), Steering::new());
            let receives = || destination::receive(&listen, into, &options, &steering, journal);
            assert!(catch_unwind(AssertUnwindSafe(receives)).is_err());
            // Nobody listens any more.
            drop(listen);
        });
        let journal = MemoryJournal::default();
        let here = source::migrate(vm, &connect, options, &Steering::new(), &journal);
        there.join().unwrap();
        here
    })
}

#[test]
fn a_destination_that_panics_before_the_commit_leaves_nothing() {
    let mut scene = Scene::new(Guest::Idle);
    scene.into.refuse = Refuse::LoadStateByPanic;
    let here = migrate(&mut scene);
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
    assert_eq!(scene.into.abandoned, 1);
    assert_eq!(scene.journal.decision(scene.options.id).unwrap(), None);
    scene.assert_kept();
}

#[test]
fn a_destination_that_panics_after_the_commit_undoes_nothing() {
    let mut scene = Scene::new(Guest::Idle);
    scene.into.refuse = Refuse::StartByPanic;
    let here = migrate(&mut scene);
    // It may still be answered when it asks, and then by the record.
    let is_given = matches!(here, Outcome::HandoverUnknown(_) | Outcome::Completed(_));
    assert!(is_given, "{here:?}");
    assert_eq!(scene.into.abandoned, 0);
    let decision = scene.journal.decision(scene.options.id).unwrap();
    assert_eq!(decision, Some(Decision::Commit));
    assert_eq!(scene.witness.running(), (false, false));
}
