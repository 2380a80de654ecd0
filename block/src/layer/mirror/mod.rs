//! A second image that is changed as the disk is, while what the disk held before is copied to it.
//!
//! # How it is used
//! Every change goes to the disk and to the *target*, and ends when both have it; so does a flush. What the target lacks
//! from the beginning is copied beside that ([`crate::copy::Copy`], which asks for each piece by [`Mirror::hold`]). When
//! nothing is left to copy and nothing was missed, the target holds what the disk does whenever no change is under way.
//!
//! # Invariants
//! 1. *Of each byte there is one change or one copy at a time.* A change keeps its range from before the first of the two
//!    images has it until both have; the copy keeps a piece from before it is read until it is written, and begins to read
//!    when no change of it is under way. Whoever comes second waits. So both images see changes of a byte in one order, and
//!    the copy never writes what is older than what the target has.
//! 2. *Both get the same bytes.* What is written is copied first: the guest may change its memory meanwhile.
//! 3. *What the target misses is marked*, in the map that was given, before the change that it missed ends: because one of
//!    the two images failed, or because changes go to the disk alone. What is marked is copied again.
//! 4. *The disk decides.* What the guest hears is what the disk said. A target that fails, or does not answer in time, is
//!    given up: changes go to the disk alone from then on, and whoever looks after the mirror is told why ([`Mirror::take_trouble`]). So a
//!    change waits for the target's patience at most.
//! 5. *Nothing that is late comes back.* A target that was given up is taken up only when all that it was asked has ended.
//!
//! # Priorities
//! The guest comes first: a piece is copied when no change is under way. But of all that goes to the target the background
//! has 5 % as long as there is any and nothing else holds it up: when it is behind its share it does not wait, and when it is
//! far behind changes are parked ([`Error::Throttled`]) until it has caught up. So it comes to an end however much is
//! written. [`Mirror::bound_unflushed`] does the same for the target's flush.

mod admission;
mod far;
mod share;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use admission::{Admission, Place, Way};
use far::{Act, Back, Class, Far};

use super::pass_on::Layer;
use super::tracker::ChangeMap;
use crate::arrivals::Arrivals;
use crate::{Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Result, ZeroMode};

/// How often whoever waits for its turn looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What a target may lack that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// What is marked.
    Missed,
    /// All: what it could not make durable may be gone, whatever it was.
    All,
}

struct State {
    admission: Admission,
    /// Why the target was given up, if nobody has been told.
    trouble: Option<Error>,
    lost: Lost,
}

/// A layer that changes a target as it does the disk.
pub struct Mirror {
    inner: Arc<dyn BlockDevice>,
    far: Arc<Far>,
    /// What the target has missed.
    missed: Arc<ChangeMap>,
    state: Mutex<State>,
    /// A change or a piece has ended.
    moved: Condvar,
    arrivals: Arrivals,
    written: AtomicU64,
}

impl Mirror {
    /// Changes `target` as it does `inner`, which is of the same size; what it misses is marked in `missed`. Each thing that
    /// it is asked may take `patience`. Starts threads, each of which calls `begin` first of all.
    ///
    /// # Errors
    /// [`Error::Thread`] when they cannot be started.
    pub fn new(
        inner: Arc<dyn BlockDevice>,
        target: Arc<dyn BlockDevice>,
        missed: Arc<ChangeMap>,
        patience: Duration,
        begin: fn(),
    ) -> Result<Self> {
        Ok(Self {
            inner,
            far: Arc::new(Far::new(target, patience, begin)?),
            missed,
            state: Mutex::new(State {
                admission: Admission::new(),
                trouble: None,
                lost: Lost::Missed,
            }),
            moved: Condvar::new(),
            arrivals: Arrivals::default(),
            written: AtomicU64::new(0),
        })
    }

    /// The target for what is copied in the background, which comes behind what the guest changes.
    pub fn background(&self) -> Arc<dyn BlockDevice> {
        Arc::new(Back(Arc::clone(&self.far)))
    }

    /// Bytes that were written to the target as the guest wrote them.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Keeps `piece` for the background, when it is its turn and no change of it is under way; `None` when the target is given
    /// up, or it is not wanted any more.
    pub fn hold(&self, piece: Range<u64>, is_wanted: impl Fn() -> bool) -> Option<Held<'_>> {
        let is_over = |state: &State| state.admission.way() == Way::Here || !is_wanted();
        let mut state = self.state();
        while !state.admission.is_its_turn() {
            state = self.wait(state);
            if is_over(&state) {
                drop(state);
                self.rest();
                return None;
            }
        }
        state.admission.keep(piece);
        let held = Held {
            mirror: self,
            given: 0,
            worth: 0,
        };
        let mut is_refused = is_over(&state);
        while !is_refused && !state.admission.is_kept_alone() {
            state = self.wait(state);
            is_refused = is_over(&state);
        }
        drop(state);
        (!is_refused).then_some(held)
    }

    /// The background waits for something else than its turn, or has ended: no change waits for it.
    pub fn rest(&self) {
        self.update(Admission::rest);
    }

    /// Bytes that the target has and has not made durable.
    pub fn unflushed(&self) -> u64 {
        self.state().admission.unflushed()
    }

    /// Makes the target durable; what that took.
    ///
    /// # Errors
    /// When its storage does not confirm it, by when it has been given up.
    pub fn flush_target(&self) -> Result<Duration> {
        let began = Instant::now();
        let given = self.state().admission.given();
        let flushed = self.far.ask(Class::Background, Act::Flush).wait();
        if flushed.is_err() {
            self.state().lost = Lost::All;
            self.suspend();
        }
        flushed.map(|()| {
            self.update(|admission| admission.flushed(given));
            began.elapsed()
        })
    }

    /// Has changes wait while the target has more bytes than `most` that are not durable.
    pub fn bound_unflushed(&self, most: Option<u64>) {
        self.update(|admission| admission.bound_unflushed(most));
    }

    /// Has changes go to the disk alone.
    pub fn suspend(&self) {
        self.update(|admission| {
            admission.set_way(Way::Here);
            self.far.give_up();
        });
    }

    /// Has changes go to the target as well again, if all that it was asked has ended: what it may lack then, and is to be
    /// copied.
    pub fn resume(&self) -> Option<Lost> {
        let mut state = self.state();
        if !self.far.take_up() {
            return None;
        }
        state.trouble = None;
        state.admission.set_way(Way::Both);
        Some(std::mem::replace(&mut state.lost, Lost::Missed))
    }

    /// Why the target was given up, once.
    pub fn take_trouble(&self) -> Option<Error> {
        self.state().trouble.take()
    }

    /// Whether the target is changed as the disk is.
    pub fn is_whole(&self) -> bool {
        self.state().admission.way() == Way::Both
    }

    /// Whether nothing is under way at all, neither a change nor a copy nor anything that is late.
    pub fn is_quiet(&self) -> bool {
        self.state().admission.is_quiet() && self.far.is_idle()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let woken = self.moved.wait_timeout(state, LOOK);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Does something after which others may be let in, and tells them.
    fn update(&self, act: impl FnOnce(&mut Admission)) {
        let mut state = self.state();
        act(&mut state.admission);
        let told = state.admission.take_awaited();
        drop(state);
        self.moved.notify_all();
        if told {
            self.arrivals.arrive();
        }
    }

    /// The target has failed.
    fn fail(&self, error: Error, lost: Lost) {
        let mut state = self.state();
        state.lost = state.lost.max(lost);
        state.trouble.get_or_insert(error);
        drop(state);
        // Whoever waits for the same waits no longer.
        self.suspend();
    }

    /// The bytes of a change; `None` where it is not of this disk, which says so itself.
    fn range(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len)?;
        (end <= self.inner.size()).then_some(offset..end)
    }

    /// Lets a change in, or says that it has to wait.
    fn enter(&self, range: &Range<u64>, bytes: u64) -> Result<Change<'_>> {
        let place = self.state().admission.enter(range, bytes);
        let place = place.ok_or_else(|| Error::Throttled {
            path: PathBuf::from(self.inner.identity().name),
        })?;
        Ok(Change {
            mirror: self,
            place,
            given: 0,
        })
    }

    /// Changes both, as `act` and `here` do, which move so many bytes.
    fn change(
        &self,
        range: Range<u64>,
        bytes: u64,
        act: Act,
        lost: Lost,
        here: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut change = self.enter(&range, bytes)?;
        if change.place.way == Way::Here {
            let _missed = self
                .missed
                .begin_change(range.start, range.end - range.start);
            return here();
        }
        let asked = self.far.ask(Class::Guest, act);
        let done = here();
        let there = asked.wait();
        self.both(&mut change, &range, bytes, lost, done.is_ok(), there);
        done
    }

    /// Takes in how a change has ended at the target, and whether it has at the disk.
    fn both(
        &self,
        change: &mut Change<'_>,
        range: &Range<u64>,
        bytes: u64,
        lost: Lost,
        done_here: bool,
        there: Result<()>,
    ) {
        if !done_here || there.is_err() {
            // Either may hold anything.
            drop(
                self.missed
                    .begin_change(range.start, range.end - range.start),
            );
        }
        match there {
            Ok(()) => {
                change.given = bytes;
                self.written.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => self.fail(error, lost),
        }
    }
}

impl Layer for Mirror {
    const NAME: &'static str = "mirror";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let len = Buffer::total_len(buffers);
        let Some(range) = self.range(offset, len) else {
            return self.inner.write(buffers, offset, durability);
        };
        let mut bytes = Buffer::copied(buffers);
        let act = Act::Write {
            bytes: bytes.clone(),
            offset,
            durability,
        };
        let lost = match durability {
            Durability::Flushed => Lost::Missed,
            // It may have been told of what else was lost, and does so once.
            Durability::Immediate => Lost::All,
        };
        self.change(range, len, act, lost, || {
            self.inner
                .write(&[Buffer::new(&mut bytes)], offset, durability)
        })
    }

    fn flush(&self) -> Result<()> {
        if !self.is_whole() {
            return self.inner.flush();
        }
        let given = self.state().admission.given();
        let asked = self.far.ask(Class::Guest, Act::Flush);
        let done = self.inner.flush();
        match asked.wait() {
            Ok(()) => self.update(|admission| admission.flushed(given)),
            Err(error) => self.fail(error, Lost::All),
        }
        done
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let Some(range) = self.range(offset, len) else {
            return self.inner.discard(offset, len);
        };
        let mut change = self.enter(&range, 0)?;
        let missed = (change.place.way == Way::Here).then(|| self.missed.begin_change(offset, len));
        let done = self.inner.discard(offset, len);
        if missed.is_none() {
            // What reads as before here may not have to at the target, which may know no discard.
            let there = match done {
                Ok(Discarded::Zero) => {
                    let mode = ZeroMode::MayUnmap;
                    self.far
                        .ask(Class::Guest, Act::Zeroes { offset, len, mode })
                        .wait()
                }
                Ok(Discarded::Kept) | Err(_) => Ok(()),
            };
            self.both(&mut change, &range, 0, Lost::Missed, done.is_ok(), there);
        }
        done
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let Some(range) = self.range(offset, len) else {
            return self.inner.write_zeroes(offset, len, mode);
        };
        let act = Act::Zeroes { offset, len, mode };
        self.change(range, 0, act, Lost::Missed, || {
            self.inner.write_zeroes(offset, len, mode)
        })
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.arrivals.tell(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }
}

/// A change that is under way, until this is dropped.
struct Change<'m> {
    mirror: &'m Mirror,
    place: Place,
    given: u64,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let Self {
            mirror,
            place,
            given,
        } = self;
        mirror.update(|admission| admission.leave(place, *given));
    }
}

/// A piece that nobody changes, until this is dropped.
pub struct Held<'m> {
    mirror: &'m Mirror,
    given: u64,
    worth: u64,
}

impl Held<'_> {
    /// So many bytes of it were copied.
    pub fn copied(mut self, bytes: u64) {
        self.given = bytes;
        self.worth = bytes;
    }

    /// It was made zeroes, which took as long as a piece of `worth` bytes is taken to.
    pub fn zeroed(mut self, worth: u64) {
        self.worth = worth;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let (given, worth) = (self.given, self.worth);
        self.mirror
            .update(|admission| admission.let_go(given, worth));
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("inner", &self.inner.identity())
            .finish_non_exhaustive()
    }
}
