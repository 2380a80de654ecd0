//! The handle by which others watch and steer a migration while it runs.

mod events;
mod history;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use events::{EventSender, Events};

use history::History;

use crate::disk_bytes::{ClassBytes, ClassMeter, DiskBytes};
use crate::error::Error;
use crate::id::MigrationId;
use crate::observation::{Observation, Side};
use crate::outcome::Outcome;
use crate::progress::{Event, LimitChange, Limits, Phase};
use crate::session::Session;
use crate::units::Rate;

/// Why a migration is to end before its commit, though nothing of it failed.
#[derive(Debug, Clone)]
enum Stop {
    /// Someone asked for it.
    Cancelled,
    /// There is no guest any more that could be moved.
    GuestEnded(Box<Observation>),
}

impl Stop {
    fn error(&self) -> Error {
        match self {
            Self::Cancelled => Error::Cancelled,
            Self::GuestEnded(why) => Error::GuestEnded(why.clone()),
        }
    }
}

/// What its owner does when the outcome is known.
type Settle = Box<dyn FnOnce(&Outcome) + Send>;

#[derive(Default)]
struct State {
    id: Option<MigrationId>,
    limits: Option<Limits>,
    /// The first one counts.
    stop: Option<Stop>,
    committing: bool,
    sessions: Vec<Weak<Session>>,
    history: History,
    subscribers: Vec<EventSender>,
    /// The outcome is known: the last event is in the history.
    ended: bool,
    /// The last event was told.
    told: bool,
    settle: Option<Settle>,
    disks: Vec<(DiskBytes, ClassMeter)>,
    /// What its user has said while it runs of what the guest may write to mirrored disks: to one, or to all (`None`); what was
    /// said last goes before.
    writes: Vec<(Option<String>, Option<u64>)>,
}

/// Shared handle of one migration.
#[derive(Default)]
pub struct Steering {
    state: Mutex<State>,
    changed: Condvar,
}

impl Steering {
    /// A handle for a migration that has not begun.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the migration to stop. `false` when that is no longer possible: the commit is under way,
    /// or it has ended.
    pub fn cancel(&self) -> bool {
        self.stop(Stop::Cancelled)
    }

    /// Ends the migration of a guest that has ended, as `why` says. `false` as for
    /// [`Steering::cancel`].
    pub fn guest_ended(&self, why: Observation) -> bool {
        self.stop(Stop::GuestEnded(Box::new(why)))
    }

    fn stop(&self, stop: Stop) -> bool {
        let (sessions, stop) = {
            let mut state = self.lock();
            if state.committing || state.ended {
                return false;
            }
            let stop = state.stop.get_or_insert(stop).clone();
            (state.sessions.clone(), stop)
        };
        for session in sessions.iter().filter_map(Weak::upgrade) {
            session.fail(stop.error());
        }
        self.changed.notify_all();
        true
    }

    /// Whether the migration is to end, for [`Steering::check`]'s reason.
    pub fn is_stopped(&self) -> bool {
        self.lock().stop.is_some()
    }

    /// The reason to end, if there is one: someone asked for it, or the guest ended.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.lock().stop {
            Some(stop) => Err(stop.error()),
            None => Ok(()),
        }
    }

    /// Passes the point after which a cancel is refused; the reason to end when one came before.
    pub(crate) fn enter_commit(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(stop) = &state.stop {
            return Err(stop.error());
        }
        state.committing = true;
        Ok(())
    }

    /// Ends `session` when a cancel comes.
    pub(crate) fn attach(&self, session: &Arc<Session>) {
        {
            let mut state = self.lock();
            state.sessions.retain(|other| other.strong_count() > 0);
            state.sessions.push(Arc::downgrade(session));
        }
        if let Err(stop) = self.check() {
            session.fail(stop);
        }
    }

    /// Which migration it is: at the destination, since the source told it; of several that came in
    /// one after the other, the last.
    pub fn id(&self) -> Option<MigrationId> {
        self.lock().id
    }

    pub(crate) fn set_id(&self, id: MigrationId) {
        self.lock().id = Some(id);
    }

    /// Sets the limits that the migration begins with, unless they were set by hand already.
    pub(crate) fn begin(&self, limits: Limits) {
        self.lock().limits.get_or_insert(limits);
    }

    /// Changes the limits; in force at once.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = Some(limits);
        self.changed.notify_all();
    }

    /// Changes the limits, and what the guest may write to disks; in force at once.
    ///
    /// # Errors
    /// `usage.limits` when it names a disk that does not go with the guest, or says something of a disk that is of all.
    pub fn change_limits(&self, change: LimitChange) -> Result<(), Observation> {
        let wrong = |what: String| Err(Observation::new(Side::Source, "usage.limits", what));
        let mut state = self.lock();
        if let Some(disk) = &change.disk {
            if change.downtime_limit.is_some() || change.bandwidth.is_some() {
                return wrong(
                    "downtime-limit and bandwidth are of all that is moved: only writes is said of a disk".into(),
                );
            }
            if !state.disks.iter().any(|(bytes, _)| bytes.id == *disk) {
                return wrong(format!(
                    "disk {disk} does not go with the guest, or not yet"
                ));
            }
        }
        let limits = state.limits.unwrap_or_default();
        state.limits = Some(limits.changed(&change));
        if let Some(Rate(rate)) = change.writes {
            let of_all = change.disk.is_none();
            state.writes.retain(|(of, _)| !of_all && *of != change.disk);
            state.writes.push((change.disk, rate));
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// What the guest may write to a disk in a second, where its user has said so since the migration began.
    pub(crate) fn writes_to(&self, disk: &str) -> Option<Option<u64>> {
        let state = self.lock();
        let said = state.writes.iter().rev();
        let mut said = said.filter(|(of, _)| of.as_deref().is_none_or(|of| of == disk));
        said.next().map(|(_, rate)| *rate)
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.lock().limits.unwrap_or_default()
    }

    /// Has whoever waits for a change look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits until the limits change, the migration is cancelled, someone calls [`Steering::wake`], or
    /// `timeout` passes.
    pub(crate) fn wait_for_change(&self, timeout: Duration) {
        let state = self.lock();
        // Woken early or not: the caller looks again.
        let _ = self.changed.wait_timeout(state, timeout);
    }

    /// Events from the beginning on; closed after the last. What there may be any number of is told as far
    /// as it is kept: of passes the first and the newest, of progress the newest.
    pub fn subscribe(&self) -> Events {
        let mut state = self.lock();
        let mut past = state.history.clone();
        if state.ended && !state.told {
            past.hold_last_back();
        }
        let (subscriber, events) = Events::after(past);
        if !state.told {
            state.subscribers.push(subscriber);
        }
        events
    }

    /// Events from the beginning to this moment, as far as they are kept; the last one also before it is told.
    pub fn past(&self) -> Vec<Event> {
        self.lock().history.iter().cloned().collect()
    }

    /// What has gone of each disk that travels, as far as this side counts it.
    pub fn disk_bytes(&self) -> Vec<DiskBytes> {
        let state = self.lock();
        let disks = state.disks.iter().map(|(bytes, _)| DiskBytes {
            class_bytes_per_s: bytes.class_bytes_per_s.filter(|_| !state.ended),
            ..bytes.clone()
        });
        disks.collect()
    }

    /// So much has gone of these disks, which are always told of in one order.
    pub(crate) fn tell_disks(&self, told: impl Iterator<Item = (String, ClassBytes)>) {
        let now = Instant::now();
        let mut state = self.lock();
        for (number, (id, class_bytes)) in told.enumerate() {
            if state.disks.len() <= number {
                state.disks.push(Default::default());
            }
            let (bytes, meter) = &mut state.disks[number];
            *bytes = DiskBytes {
                id,
                class_bytes,
                class_bytes_per_s: Some(meter.measure(now, class_bytes)),
            };
        }
    }

    /// The newest event.
    pub fn last_event(&self) -> Option<Event> {
        self.lock().history.last().cloned()
    }

    pub(crate) fn emit(&self, event: Event) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state
            .subscribers
            .retain(|subscriber| subscriber.tell(event.clone()));
        state.history.push(event);
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.emit(Event::Phase { phase });
    }

    pub(crate) fn warn(&self, observation: Observation) {
        tracing::warn!(id = %observation.id, "{observation}");
        self.emit(Event::Warning { observation });
    }

    /// Has `settle` called with the outcome before a subscriber hears of it, so that whoever does finds
    /// the VM as the outcome says. [`Steering::last_event`] is the outcome by then.
    pub fn before_end(&self, settle: impl FnOnce(&Outcome) + Send + 'static) {
        self.lock().settle = Some(Box::new(settle));
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        let event = outcome.event();
        let settle = {
            let mut state = self.lock();
            state.ended = true;
            state.history.push(event.clone());
            state.settle.take()
        };
        if let Some(settle) = settle {
            settle(outcome);
        }
        let mut state = self.lock();
        state.told = true;
        for subscriber in state.subscribers.drain(..) {
            // It may have lost its interest.
            let _ = subscriber.tell(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;
    use crate::progress::{Iteration, Report};

    #[test]
    fn who_does_not_read_keeps_little_waiting_and_still_hears_the_end() {
        let steering = Steering::new();
        let slow = steering.subscribe();
        steering.phase(Phase::Precopy);
        for n in 1..=20_000 {
            steering.emit(Event::Iteration(Iteration {
                n,
                ..Iteration::default()
            }));
        }
        let outcome = Outcome::Completed(Report::default());
        steering.end(&outcome);
        for told in [slow, steering.subscribe()] {
            let events: Vec<_> = told.iter().collect();
            assert!(events.len() < 100, "{}", events.len());
            assert!(matches!(events[0], Event::Phase { .. }));
            assert_eq!(events.last(), Some(&outcome.event()));
        }
    }

    #[test]
    fn outcome_is_acted_on_before_a_subscriber_hears_of_it() {
        let steering = Steering::new();
        steering.phase(Phase::Precopy);
        let before = steering.subscribe();
        before.recv().unwrap();
        let settled = Arc::new(Mutex::new(None));
        let (its_steering, its_settled) = (steering.clone(), settled.clone());
        steering.before_end(move |outcome| {
            assert_eq!(before.try_recv(), Err(TryRecvError::Empty));
            assert_eq!(its_steering.last_event(), Some(outcome.event()));
            // One that comes meanwhile hears the rest, and the end with the others.
            let meanwhile = its_steering.subscribe();
            assert!(matches!(meanwhile.try_recv(), Ok(Event::Phase { .. })));
            assert_eq!(meanwhile.try_recv(), Err(TryRecvError::Empty));
            *its_settled.lock().unwrap() = Some((before, meanwhile));
        });
        let outcome = Outcome::Failed(Report::default());
        steering.end(&outcome);
        let (before, meanwhile) = settled.lock().unwrap().take().unwrap();
        let after = steering.subscribe();
        after.recv().unwrap();
        for subscriber in [before, meanwhile, after] {
            assert_eq!(subscriber.recv(), Ok(outcome.event()));
            assert!(subscriber.recv().is_err(), "closed after the last");
        }
        assert!(!steering.cancel());
    }
}
