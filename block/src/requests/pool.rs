//! A backend of any [`BlockDevice`]: a few threads, and the one that submits, carry the requests out.
//!
//! A request that is over in a moment is best carried out by the thread that has it in hand: to wake
//! another costs more. One that takes long is given away, so that its submitter can go on. Which of them
//! it will be is taken from how long such requests took lately.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::order::{Order, Place};
use super::pace::Pace;
use crate::{Backend, BlockDevice, Error, Job, Result, Submitter};

/// Threads of a pool, and with that the most requests in flight beside those on the submitters' threads:
/// whoever waits for all of them to end waits for little longer than for one.
pub const THREADS: usize = 4;

/// Requests that take less are not given away though others wait: to wake a thread would cost more.
const BRIEF: Duration = Duration::from_micros(100);
/// Requests that take less are not given away when there is no other.
const BEARABLE: Duration = Duration::from_millis(1);

/// How long the drop of a pool waits for requests to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A request with its place in the order, if it has any.
type Waiting = (Option<Place>, Box<dyn Job>);

#[derive(Default)]
struct State {
    order: Order,
    /// Given to the threads, and not begun.
    waiting: VecDeque<Waiting>,
    /// Threads without a request.
    idle: usize,
    /// Threads that exist.
    alive: usize,
    /// Whoever has a request in hand that is not due.
    held_up: usize,
    stop: bool,
}

struct Shared {
    disk: Arc<dyn BlockDevice>,
    pace: Pace,
    state: Mutex<State>,
    /// A request was given away, or the pool ends.
    given: Condvar,
    /// A request has ended, or a thread.
    ended: Condvar,
}

/// A disk whose requests are carried out by threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts threads for the requests to `disk`; each of them calls `begin` first of all.
    ///
    /// # Errors
    /// [`Error::Thread`] when they cannot be started.
    pub fn new(disk: Arc<dyn BlockDevice>, begin: fn()) -> Result<Self> {
        let mut pool = Self {
            shared: Arc::new(Shared {
                disk,
                pace: Pace::default(),
                state: Mutex::new(State {
                    waiting: VecDeque::with_capacity(4 * THREADS),
                    ..State::default()
                }),
                given: Condvar::new(),
                ended: Condvar::new(),
            }),
            threads: Vec::with_capacity(THREADS),
        };
        for index in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            {
                let mut state = pool.shared.state();
                state.alive += 1;
                state.idle += 1;
            }
            let thread = std::thread::Builder::new()
                .name(format!("disk-{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    let _alive = Alive(&shared);
                    begin();
                    shared.run();
                });
            match thread {
                Ok(thread) => pool.threads.push(thread),
                Err(source) => {
                    // Dropping the pool ends the threads that were started.
                    pool.shared.state().alive -= 1;
                    let path = PathBuf::from(pool.shared.disk.identity().name);
                    return Err(Error::Thread { path, source });
                }
            }
        }
        Ok(pool)
    }
}

impl Backend for Pool {
    fn submit(&self, job: Box<dyn Job>, submitter: Submitter) {
        self.shared.submit(job, submitter);
    }

    fn has_room(&self) -> bool {
        self.shared.state().has_room()
    }

    fn disk(&self) -> &dyn BlockDevice {
        &*self.shared.disk
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let me = std::thread::current().id();
        let all = self.threads.len();
        self.threads.retain(|thread| thread.thread().id() != me);
        // The last request may be what held the pool, and this one of its threads.
        let remain = all - self.threads.len();
        let mut state = self.shared.state();
        state.stop = true;
        self.shared.given.notify_all();
        let wait = self
            .shared
            .ended
            .wait_timeout_while(state, FAREWELL, |state| state.alive > remain);
        state = wait.unwrap_or_else(PoisonError::into_inner).0;
        if state.alive > remain {
            // A thread that is left behind keeps what its request needs, and ends with it.
            return;
        }
        drop(state);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("disk", &self.shared.disk.identity())
            .finish_non_exhaustive()
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.idle > self.waiting.len()
    }

    fn is_due(&self, place: Option<Place>) -> bool {
        place.is_none_or(|place| self.order.is_due(place))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, job: Box<dyn Job>, submitter: Submitter) {
        let action = job.action();
        let span = action.span(job.buffers());
        let mut state = self.state();
        let place = span.map(|span| state.order.enter(span));
        let limit = match submitter {
            Submitter::Alone => Some(BEARABLE),
            Submitter::Ahead => Some(BRIEF),
            Submitter::Hurried => None,
        };
        let here = limit.is_some_and(|limit| {
            !state.has_room() || (self.pace.is_within(action, limit) && state.is_due(place))
        });
        if here {
            self.carry_out(state, (place, job));
        } else {
            state.waiting.push_back((place, job));
            drop(state);
            self.given.notify_one();
        }
    }

    /// The life of a thread.
    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some(request) = state.waiting.pop_front() {
                state.idle -= 1;
                self.carry_out(state, request);
                state = self.state();
                state.idle += 1;
            } else if state.stop {
                return;
            } else {
                let woken = self.given.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Carries a request out when it is due, on this thread.
    ///
    /// It is not waited for in a circle: the first of all requests is due, and threads take them in their
    /// order.
    fn carry_out(&self, mut state: MutexGuard<'_, State>, (place, job): Waiting) {
        while !state.is_due(place) {
            state.held_up += 1;
            let woken = self.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.held_up -= 1;
        }
        drop(state);
        let began = Began {
            shared: self,
            place,
        };
        let (action, at) = (job.action(), Instant::now());
        let result = action.carry_out(&*self.disk, job.buffers());
        self.pace.note(action, at.elapsed());
        drop(began);
        match result {
            Err(error) if error.is_for_now() => job.park(),
            result => job.complete(result),
        }
    }
}

/// A request that is being carried out; it leaves the order when this is dropped, also by a panic.
struct Began<'s> {
    shared: &'s Shared,
    place: Option<Place>,
}

impl Drop for Began<'_> {
    fn drop(&mut self) {
        let Some(place) = self.place else {
            return;
        };
        let mut state = self.shared.state();
        state.order.leave(place);
        let held_up = state.held_up > 0;
        drop(state);
        if held_up {
            self.shared.ended.notify_all();
        }
    }
}

/// A thread of a pool, counted until it ends, also by a panic.
struct Alive<'s>(&'s Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.state().alive -= 1;
        self.0.ended.notify_all();
    }
}
