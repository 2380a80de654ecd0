//! The requests of a disk with a ring that have not ended: who carries each out, and when.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ring::Caller;
use crate::image::direct::Direct;
use crate::image::sys::{Direction, MAX_VECTOR};
use crate::layer::tracker::{Begun, ChangeMap};
use crate::requests::order::{Order, Place};
use crate::requests::pace::Pace;
use crate::{Action, BlockDevice, Buffer, Error, Job, RawImage, Result, Submitter};

/// Most requests of a disk that are in flight at once; whoever submits more waits, if it may be kept. Whoever waits for
/// all of them to end waits for as many.
pub const DEPTH: usize = 64;

/// The only request is carried out by the thread that submits it if such requests take less than this: that wakes one
/// thread less, twice.
const BEARABLE: Duration = Duration::from_millis(1);

/// Who carries a request out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The ring moves bytes from or to this offset.
    Transfer(Direction, u64),
    /// The ring makes the image durable.
    Flush,
    /// A thread that may be kept, as the ring cannot, or not so.
    Hand,
}

/// A request that has not ended.
pub(super) struct Request {
    pub(super) job: Box<dyn Job>,
    pub(super) action: Action,
    pub(super) way: Way,
    /// When it was submitted, if there was no other.
    alone_since: Option<Instant>,
    unfinished: Unfinished,
}

impl Request {
    /// Whether the ring changes the image for it.
    pub(super) fn is_change(&self) -> bool {
        matches!(
            self.way,
            Way::Transfer(Direction::Write | Direction::WriteDurably, _)
        )
    }
}

/// Keeps the place of a request in the order, and its marks, until this is dropped, by a panic too.
struct Unfinished {
    work: Arc<Work>,
    place: Option<Place>,
    change: Option<(Arc<ChangeMap>, Begun)>,
}

#[derive(Default)]
struct State {
    order: Order,
    /// Not due, in the order in which they were submitted.
    held: VecDeque<Request>,
    for_ring: VecDeque<Request>,
    for_hands: VecDeque<Request>,
    /// Requests that have not ended, wherever they are.
    unfinished: usize,
    /// Submitters that wait for room.
    kept: usize,
    /// The thread of the ring does not look before something is done.
    ring_rests: bool,
    /// Threads that exist.
    alive: usize,
    stop: bool,
}

/// What the threads of a disk with a ring share.
pub(super) struct Work {
    pub(super) image: Arc<RawImage>,
    pace: Pace,
    state: Mutex<State>,
    pub(super) caller: Caller,
    /// A hand is needed, or none is any more.
    hand_needed: Condvar,
    /// A request has ended, or a thread.
    ended: Condvar,
}

impl Work {
    pub(super) fn new(image: Arc<RawImage>) -> io::Result<Self> {
        let state = State {
            held: VecDeque::with_capacity(2 * DEPTH),
            for_ring: VecDeque::with_capacity(2 * DEPTH),
            for_hands: VecDeque::with_capacity(2 * DEPTH),
            ..State::default()
        };
        Ok(Self {
            image,
            pace: Pace::default(),
            state: Mutex::new(state),
            caller: Caller::new()?,
            hand_needed: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_room(&self) -> bool {
        self.state().unfinished < DEPTH
    }

    /// Who carries this out. What cannot succeed goes to a hand, which says why.
    fn way(&self, action: Action, buffers: &[Buffer<'_>]) -> Way {
        let len = Buffer::total_len(buffers);
        let fits = |offset| {
            let direct = self.image.direct();
            len > 0
                && buffers.len() <= MAX_VECTOR
                && direct.is_some_and(|direct| direct.fits(buffers, offset))
        };
        match action {
            Action::Read { offset }
                if fits(offset) && self.image.check_range(offset, len).is_ok() =>
            {
                Way::Transfer(Direction::Read, offset)
            }
            Action::Write { offset, durability }
                if fits(offset) && self.image.check_change(offset, len).is_ok() =>
            {
                Way::Transfer(Direction::of_write(durability), offset)
            }
            Action::Flush if !self.image.read_only() => Way::Flush,
            _ => Way::Hand,
        }
    }

    /// Begins a request, whose changes are marked in `map`.
    pub(super) fn submit(
        self: &Arc<Self>,
        job: Box<dyn Job>,
        submitter: Submitter,
        map: Option<&Arc<ChangeMap>>,
    ) {
        let (action, buffers) = (job.action(), job.buffers());
        let way = self.way(action, buffers);
        let mut span = action.span(buffers);
        if way == Way::Hand
            && let Some(direct) = self.image.direct()
        {
            // The page cache reads and writes more than was asked for, which must not meet what goes past it.
            span = span.map(|span| span.widened(|offset, len| direct.around(offset, len)));
        }
        let change = map.and_then(|map| {
            let (offset, len) = action.changes(buffers)?;
            Some((Arc::clone(map), map.begin(offset, len)))
        });
        let mut state = self.state();
        while submitter != Submitter::Hurried && state.unfinished >= DEPTH {
            state.kept += 1;
            let woken = self.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.kept -= 1;
        }
        let alone = state.unfinished == 0;
        state.unfinished += 1;
        let place = span.map(|span| state.order.enter(span));
        let request = Request {
            job,
            action,
            way,
            alone_since: alone.then(Instant::now),
            unfinished: Unfinished {
                work: Arc::clone(self),
                place,
                change,
            },
        };
        if alone && submitter == Submitter::Alone && self.pace.is_within(action, BEARABLE) {
            drop(state);
            self.carry_out(request);
        } else if place.is_some_and(|place| !state.order.is_due(place)) {
            state.held.push_back(request);
        } else {
            self.give(state, request);
        }
    }

    /// Gives a request that is due to whoever carries it out.
    fn give(&self, mut state: MutexGuard<'_, State>, request: Request) {
        if request.way == Way::Hand {
            state.for_hands.push_back(request);
            drop(state);
            self.hand_needed.notify_one();
        } else {
            state.for_ring.push_back(request);
            let rests = std::mem::take(&mut state.ring_rests);
            drop(state);
            if rests {
                self.caller.call();
            }
        }
    }

    /// Gives a request to a hand that the ring has not done, or not wholly.
    pub(super) fn by_hand(&self, request: Request) {
        self.state().for_hands.push_back(request);
        self.hand_needed.notify_one();
    }

    /// Takes requests for the ring, at most so many. Once this has been called, the thread of the ring is called when
    /// there are more, until [`Work::ring_looks`]. Whether there will be none any more.
    pub(super) fn take_for_ring(&self, most: usize, to: &mut Vec<Request>) -> bool {
        let mut state = self.state();
        let count = state.for_ring.len().min(most);
        to.extend(state.for_ring.drain(..count));
        state.ring_rests = true;
        state.stop && state.unfinished == 0
    }

    /// The thread of the ring looks by itself from here on.
    pub(super) fn ring_looks(&self) {
        self.state().ring_rests = false;
    }

    /// The life of a thread that carries out what the ring cannot.
    pub(super) fn be_a_hand(&self) {
        let mut state = self.state();
        loop {
            if let Some(request) = state.for_hands.pop_front() {
                drop(state);
                self.carry_out(request);
                state = self.state();
            } else if state.stop && state.unfinished == 0 {
                return;
            } else {
                let woken = self.hand_needed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Carries a request out on this thread.
    fn carry_out(&self, request: Request) {
        let buffers = request.job.buffers();
        let result = match (request.way, self.image.direct()) {
            (Way::Transfer(direction, offset), Some(direct)) => {
                self.transfer(direct, direction, buffers, offset)
            }
            _ => request.action.carry_out(&*self.image, buffers),
        };
        self.end(request, result);
    }

    fn transfer(
        &self,
        direct: &Direct,
        direction: Direction,
        buffers: &[Buffer<'_>],
        offset: u64,
    ) -> Result<()> {
        let image = &*self.image;
        let moved = || image.transfer_direct(direct, direction, buffers, offset);
        let len = Buffer::total_len(buffers);
        let refused = |result: &Result<()>| matches!(result, Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL));
        if direction == Direction::Read {
            let result = moved();
            // So it is where the kernel stopped at the end of a file that has become shorter.
            return if refused(&result) {
                image.read(buffers, offset)
            } else {
                result
            };
        }
        image.note_write(offset);
        let result = image.change(moved);
        // Storage that takes less than it says. Past it only whole blocks of the page cache are safe, see `submit`.
        if refused(&result)
            && direct.around(offset, len) == (offset, len)
            && direction == Direction::Write
        {
            return image.write(buffers, offset, crate::Durability::Flushed);
        }
        result
    }

    /// Ends a request.
    pub(super) fn end(&self, request: Request, result: Result<()>) {
        let Request {
            job,
            action,
            way: _,
            alone_since,
            unfinished,
        } = request;
        if let Some(since) = alone_since {
            self.pace.note(action, since.elapsed());
        }
        drop(unfinished);
        job.complete(result);
    }

    /// A thread is about to be started.
    pub(super) fn expect_thread(&self) {
        self.state().alive += 1;
    }

    /// A thread has ended, or was not started.
    pub(super) fn thread_ended(&self) {
        self.state().alive -= 1;
        self.ended.notify_all();
    }

    /// Has the threads end when nothing is left to do.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.hand_needed.notify_all();
        self.caller.call();
    }

    /// Waits until only so many threads are left; whether it is so in time.
    pub(super) fn left_within(&self, remain: usize, patience: Duration) -> bool {
        let wait = self
            .ended
            .wait_timeout_while(self.state(), patience, |state| state.alive > remain);
        wait.unwrap_or_else(PoisonError::into_inner).0.alive <= remain
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let work = &*self.work;
        if let Some((map, begun)) = &mut self.change {
            map.end(begun);
        }
        let mut guard = work.state();
        let state = &mut *guard;
        if let Some(place) = self.place {
            state.order.leave(place);
        }
        state.unfinished -= 1;
        let (mut ring_needed, mut hands_needed) = (false, false);
        let mut at = 0;
        while let Some(request) = state.held.get(at) {
            let place = request.unfinished.place;
            if place.is_some_and(|place| !state.order.is_due(place)) {
                at += 1;
            } else if let Some(request) = state.held.remove(at) {
                if request.way == Way::Hand {
                    hands_needed = true;
                    state.for_hands.push_back(request);
                } else {
                    ring_needed = true;
                    state.for_ring.push_back(request);
                }
            }
        }
        let over = state.stop && state.unfinished == 0;
        let rests = (ring_needed || over) && std::mem::take(&mut state.ring_rests);
        let kept = state.kept > 0;
        drop(guard);
        if rests {
            work.caller.call();
        }
        if hands_needed || over {
            work.hand_needed.notify_all();
        }
        if kept {
            work.ended.notify_all();
        }
    }
}
