//! A migration between doubles in this process, watched and steered.

use std::sync::Arc;
use std::time::Duration;

use migration::journal::MemoryJournal;
use migration::observation::Observation;
use migration::progress::Limits;
use migration::request::MigrateRequest;
use migration::steering::{Events, Steering};
use migration::transport::memory::{self, Injection};
use migration::units::{Rate, Span};
use migration::wire::capabilities::Capabilities;
use migration::wire::control::Message;
use migration::{MigrationId, Outcome, destination, source};

use super::players::relay;
use super::{Destination, Guest, Source, Witness, ends_within};

/// Dirties memory faster than the limit on bandwidth lets it go.
pub const HOT: Guest = Guest::Writes {
    pages: 1000,
    pause: Duration::ZERO,
};
pub const SLOW: Limits = Limits {
    downtime: Duration::from_millis(20),
    bandwidth: Some(4 << 20),
};

/// One migration of one guest.
pub struct Scene {
    pub witness: Arc<Witness>,
    pub vm: Source,
    pub into: Destination,
    pub options: source::Options,
    pub journal: MemoryJournal,
    /// What strikes on the network, and how many of it did.
    pub injections: Vec<Injection>,
    pub struck: u64,
}

impl Scene {
    pub fn new(guest: Guest) -> Self {
        let witness = Arc::default();
        let vm = Source::new(2000, guest, &witness);
        vm.fill(0, 0, 900);
        Self {
            vm,
            into: Destination::new(&witness),
            witness,
            options: source::Options::new(
                MigrationId::random().unwrap(),
                MigrateRequest::new("unix:/there"),
            ),
            journal: MemoryJournal::default(),
            injections: Vec::new(),
            struck: 0,
        }
    }

    /// Begins with `limits`.
    pub fn limit(&mut self, limits: Limits) {
        let request = &mut self.options.request;
        request.downtime_limit = Span(limits.downtime);
        request.bandwidth = Rate(limits.bandwidth);
    }

    /// Runs it with a destination of a version without `capability`, which the source refuses for that; why.
    #[track_caller]
    pub fn refused_without(&mut self, capability: Capabilities) -> Observation {
        let older = |message| match message {
            Message::Welcome(mut welcome) => {
                let told = welcome.capabilities.unwrap();
                welcome.capabilities = Some(told & !capability.bits());
                Message::Welcome(welcome)
            }
            other => other,
        };
        let (connect, between) = memory::network(&[]);
        let (onwards, listen) = memory::network(&[]);
        let receiving = Steering::new();
        let Self {
            vm,
            into,
            options,
            journal,
            ..
        } = self;
        let here = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let options = destination::Options::default();
                destination::receive(&listen, into, &options, &receiving, journal)
            });
            scope.spawn(|| relay(&between, &onwards, &older));
            let journal = MemoryJournal::default();
            let here = source::migrate(vm, &connect, options, &Steering::new(), &journal);
            receiving.cancel();
            there.join().unwrap();
            here
        });
        let Outcome::Failed(report) = here else {
            panic!("it is not refused")
        };
        self.assert_kept();
        let why = report.error.unwrap();
        why.root().clone()
    }

    /// Runs the migration while `steer` watches its events.
    pub fn run(&mut self, steer: impl FnOnce(&Steering, Events) + Send) -> [Outcome; 2] {
        self.run_with(|_, steering, events| steer(steering, events))
    }

    /// As [`Scene::run`], where the guest's user does something too.
    pub fn run_with(
        &mut self,
        steer: impl FnOnce(&Source, &Steering, Events) + Send,
    ) -> [Outcome; 2] {
        let (connect, listen) = memory::network(&self.injections);
        let (steering, receiving) = (Steering::new(), Steering::new());
        let Self {
            vm,
            into,
            options,
            journal,
            struck,
            ..
        } = self;
        let outcomes = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let options = destination::Options::default();
                destination::receive(&listen, into, &options, &receiving, journal)
            });
            let events = steering.subscribe();
            let handle = steering.clone();
            let vm = &*vm;
            scope.spawn(move || {
                let _fails = CancelsOnPanic(&handle);
                steer(vm, &handle, events);
            });
            let here = source::migrate(vm, &connect, options, &steering, &MemoryJournal::default());
            // A destination that nobody came to, or that was only asked, waits for the next.
            ends_within(&there, Duration::from_millis(500));
            receiving.cancel();
            [here, there.join().unwrap()]
        });
        *struck = connect.struck();
        outcomes
    }

    pub fn assert_kept(&self) {
        assert!(self.vm.is_untouched(), "the source is not as before");
        assert!(
            self.into.has_nothing(),
            "something is left at the destination"
        );
        assert_eq!(self.witness.running(), (true, false));
    }
}

/// Whoever steers and fails ends the migration too, which may wait for what does not come then.
struct CancelsOnPanic<'a>(&'a Steering);

impl Drop for CancelsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

pub fn ignore(_: &Steering, _: Events) {}
