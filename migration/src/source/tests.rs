//! What the steps make of a policy other than that of a single guest.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::course::Course;
use super::policy::SwitchOverPolicy;
use super::{Options, run};
use crate::convergence::{self, Deadline, Decision, Observed, Outlook};
use crate::destination;
use crate::double::scene::{HOT, SLOW, Scene};
use crate::double::{Destination, Guest, Source, ends_within};
use crate::error::Error;
use crate::id::{HostId, MigrationId};
use crate::journal::{
    Decision as Decided, Handover, Journal, JournalError, MemoryJournal, SourceRecord,
};
use crate::observation::Side;
use crate::outcome::Outcome;
use crate::progress::{Limits, TimeoutAction};
use crate::resolution::Resolution;
use crate::steering::Steering;
use crate::transport::memory;
use crate::units::Span;

/// Moves the guest of `vm` under `policy`; how that ended, here and there.
fn migrate(
    vm: &Source,
    into: &mut Destination,
    options: &Options,
    receiving: &Steering,
    policy: &dyn SwitchOverPolicy,
) -> [Outcome; 2] {
    let ours = MemoryJournal::default();
    migrate_by(vm, into, options, receiving, policy, &ours)
}

/// The same, with a journal of its own at the source.
fn migrate_by(
    vm: &Source,
    into: &mut Destination,
    options: &Options,
    receiving: &Steering,
    policy: &dyn SwitchOverPolicy,
    ours: &dyn Journal,
) -> [Outcome; 2] {
    let (connect, listen) = memory::network(&[]);
    let theirs = MemoryJournal::default();
    let steering = Steering::new();
    steering.begin(options.request.limits());
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            let options = destination::Options::default();
            destination::receive(&listen, into, &options, receiving, &theirs)
        });
        let here = run(Course::new(vm, &connect, options, &steering, ours, policy));
        // A destination that nobody came to waits for the next.
        ends_within(&there, Duration::from_millis(500));
        receiving.cancel();
        [here, there.join().unwrap()]
    })
}

/// Lets a guest be stopped that is late only when it has been asked for long enough.
struct Reluctant<'a> {
    vm: &'a Source,
    deadline: Deadline,
    refused: AtomicU32,
}

/// How often it refuses.
const REFUSALS: u32 = 5;

impl SwitchOverPolicy for Reluctant<'_> {
    fn may_stop(&self, observed: &Observed, limits: &Limits) -> Decision {
        let is_late = self
            .deadline
            .timeout
            .is_some_and(|timeout| observed.elapsed >= timeout);
        if is_late && self.refused.load(Ordering::SeqCst) < REFUSALS {
            assert_eq!(
                self.vm.pauses.load(Ordering::SeqCst),
                0,
                "it was stopped all the same"
            );
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Decision::Iterate(Outlook::Stuck);
        }
        match is_late {
            true => convergence::decide(observed, limits, self.deadline),
            false => Decision::Iterate(Outlook::Stuck),
        }
    }

    fn may_commit(&self, _stands: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_time_out_stops_no_guest_whose_policy_refuses() {
    let mut scene = Scene::new(HOT);
    scene.limit(SLOW);
    scene.options.request.timeout = Some(Span(Duration::from_millis(100)));
    scene.options.request.on_timeout = TimeoutAction::Stop;
    let Scene {
        vm, into, options, ..
    } = &mut scene;
    let policy = Reluctant {
        vm,
        deadline: options.deadline(),
        refused: AtomicU32::new(0),
    };
    let [here, there] = migrate(vm, into, options, &Steering::new(), &policy);
    assert_eq!(policy.refused.load(Ordering::SeqCst), REFUSALS);
    assert!(matches!(here, Outcome::Completed(_)), "{here:?}");
    assert!(matches!(there, Outcome::Completed(_)), "{there:?}");
}

/// Waits with the commit for what never comes, while the destination gives up.
struct Patient<'a> {
    receiving: &'a Steering,
}

impl SwitchOverPolicy for Patient<'_> {
    fn may_stop(&self, _observed: &Observed, _limits: &Limits) -> Decision {
        Decision::SwitchOver
    }

    fn may_commit(&self, stands: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        stands()?;
        self.receiving.cancel();
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            stands()?;
            thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody told that the destination has given up");
    }
}

#[test]
fn a_policy_that_waits_hears_that_the_link_is_gone() {
    let mut scene = Scene::new(Guest::Idle);
    let Scene {
        vm, into, options, ..
    } = &mut scene;
    let receiving = Steering::new();
    let policy = Patient {
        receiving: &receiving,
    };
    let [here, there] = migrate(vm, into, options, &receiving, &policy);
    assert!(matches!(here, Outcome::Failed(_)), "{here:?}");
    assert!(matches!(there, Outcome::Cancelled(_)), "{there:?}");
    scene.assert_kept();
}

/// Takes so long to record that the commit is sent that the destination gives up meanwhile, says so, and is gone.
struct SlowToRecord<'a> {
    within: MemoryJournal,
    receiving: &'a Steering,
}

impl Journal for SlowToRecord<'_> {
    fn record(&self, id: MigrationId, record: &SourceRecord) -> Result<(), JournalError> {
        if record.handover == Handover::CommitSent {
            let events = self.receiving.subscribe();
            self.receiving.cancel();
            assert!(events.iter().last().is_some());
        }
        self.within.record(id, record)
    }

    fn identity(&self) -> HostId {
        self.within.identity()
    }

    fn decide(&self, id: MigrationId, decision: Decided) -> Result<Decided, JournalError> {
        self.within.decide(id, decision)
    }

    fn decision(&self, id: MigrationId) -> Result<Option<Decided>, JournalError> {
        self.within.decision(id)
    }

    fn answer(&self, id: MigrationId, answer: Resolution) -> Result<Resolution, JournalError> {
        self.within.answer(id, answer)
    }

    fn answered(&self, id: MigrationId) -> Result<Option<Resolution>, JournalError> {
        self.within.answered(id)
    }

    fn finish(&self, id: MigrationId) -> Result<(), JournalError> {
        self.within.finish(id)
    }

    fn recorded(&self, id: MigrationId) -> Result<Option<SourceRecord>, JournalError> {
        self.within.recorded(id)
    }

    fn reserve(&self, id: MigrationId, side: Side) -> Result<Duration, JournalError> {
        self.within.reserve(id, side)
    }

    fn discard(&self, id: MigrationId, side: Side) -> Result<(), JournalError> {
        self.within.discard(id, side)
    }
}

#[test]
fn a_destination_that_gives_up_while_the_decision_is_recorded_leaves_no_doubt() {
    let mut scene = Scene::new(Guest::Idle);
    scene.options.resolve_for = Duration::from_millis(200);
    let Scene {
        vm, into, options, ..
    } = &mut scene;
    let receiving = Steering::new();
    let ours = SlowToRecord {
        within: MemoryJournal::default(),
        receiving: &receiving,
    };
    let policy = Obliging;
    let [here, there] = migrate_by(vm, into, options, &receiving, &policy, &ours);
    let Outcome::Failed(report) = here else {
        panic!("{here:?}")
    };
    let error = report.error.expect("an error");
    assert_eq!(error.root().id, "migration.cancelled");
    assert!(matches!(there, Outcome::Cancelled(_)), "{there:?}");
    scene.assert_kept();
}

/// Lets everything happen at once.
struct Obliging;

impl SwitchOverPolicy for Obliging {
    fn may_stop(&self, _observed: &Observed, _limits: &Limits) -> Decision {
        Decision::SwitchOver
    }

    fn may_commit(&self, _stands: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        Ok(())
    }
}
