//! Requests of all connections, in the order in which they are answered.
//!
//! What somebody waits for goes before what is needed some time, whichever connection it came on. So that the latter is
//! not waited for in vain, one of it goes after every [`FLOOR`] all the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bandwidth::FixedLimit;
use crate::error::Error;
use crate::wire::pull::{Class, MAX_ASKED, Units};

/// How long what is needed some time is held back at most.
const FLOOR: Duration = Duration::from_millis(100);

/// A request that is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub number: u32,
    pub units: Units,
    pub class: Class,
}

#[derive(Default)]
struct Waiting {
    demand: VecDeque<Asked>,
    background: VecDeque<Asked>,
    /// The request that is being answered.
    answering: Option<u32>,
    closed: bool,
}

struct State {
    connections: BTreeMap<u64, Waiting>,
    last: u64,
    /// Demanded requests that wait or are being answered.
    demand: usize,
    /// When the last was answered that nobody waits for, or none was held back.
    let_through: Instant,
}

impl State {
    /// The next request of a connection, or how long it has to wait for one that it has, where the rate has what nobody waits
    /// for wait for `debt`.
    fn next(
        &mut self,
        connection: u64,
        now: Instant,
        debt: Duration,
    ) -> Result<Asked, Option<Duration>> {
        let for_demand = match self.demand {
            0 => Duration::ZERO,
            _ => FLOOR.saturating_sub(now.saturating_duration_since(self.let_through)),
        };
        let held_back = debt.max(for_demand);
        let waiting = self.connections.get_mut(&connection).ok_or(None)?;
        let background = !waiting.background.is_empty();
        let next = match waiting.demand.pop_front() {
            Some(asked) => asked,
            None if !background => return Err(None),
            None if !held_back.is_zero() => return Err(Some(held_back)),
            None => waiting.background.pop_front().ok_or(None)?,
        };
        if next.class == Class::Background {
            self.let_through = now;
        }
        waiting.answering = Some(next.number);
        Ok(next)
    }
}

/// What waits for an answer, of all connections.
pub(super) struct Queues {
    state: Mutex<State>,
    changed: Condvar,
    limit: FixedLimit,
}

impl Queues {
    /// Nothing waits; what nobody waits for is given out at `rate` bytes a second.
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            limit: FixedLimit::at(rate),
            state: Mutex::new(State {
                connections: BTreeMap::new(),
                last: 0,
                demand: 0,
                let_through: Instant::now(),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the requests of one connection.
    pub fn join(&self) -> Queue<'_> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.connections.insert(number, Waiting::default());
        Queue {
            queues: self,
            number,
        }
    }

    /// Counts `bytes` that an answer takes.
    pub fn count(&self, bytes: usize) {
        self.limit.overdraw(bytes);
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.lock().connections.len()
    }
}

/// The requests of one connection; they go with it.
pub(super) struct Queue<'a> {
    queues: &'a Queues,
    number: u64,
}

impl Queue<'_> {
    /// Takes a request in.
    ///
    /// # Errors
    /// [`Error::Protocol`] when too many wait, or one with this number does.
    pub fn put(&self, asked: Asked) -> Result<(), Error> {
        let mut state = self.queues.lock();
        let Some(waiting) = state.connections.get_mut(&self.number) else {
            return Ok(());
        };
        if waiting.demand.len() + waiting.background.len() >= MAX_ASKED {
            return Err(Error::Protocol(format!(
                "more than {MAX_ASKED} requests wait for an answer"
            )));
        }
        let mut numbers = waiting.demand.iter().chain(&waiting.background);
        if waiting.answering == Some(asked.number)
            || numbers.any(|other| other.number == asked.number)
        {
            return Err(Error::Protocol(format!(
                "two requests have the number {}",
                asked.number
            )));
        }
        match asked.class {
            Class::Demand => {
                waiting.demand.push_back(asked);
                state.demand += 1;
            }
            Class::Background => waiting.background.push_back(asked),
        }
        drop(state);
        self.queues.changed.notify_all();
        Ok(())
    }

    /// The next request, when it may be answered; none when the connection has ended.
    pub fn next(&self) -> Option<Turn<'_>> {
        let mut state = self.queues.lock();
        loop {
            if state.connections.get(&self.number)?.closed {
                return None;
            }
            let now = Instant::now();
            let wait = match state.next(self.number, now, self.queues.limit.debt(now)) {
                Ok(asked) => {
                    return Some(Turn { queue: self, asked });
                }
                Err(wait) => wait,
            };
            state = match wait {
                None => self.queues.changed.wait(state),
                Some(time) => self
                    .queues
                    .changed
                    .wait_timeout(state, time)
                    .map(|(state, _)| state)
                    .map_err(|e| PoisonError::new(e.into_inner().0)),
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        let state = self.queues.lock();
        state
            .connections
            .get(&self.number)
            .is_none_or(|waiting| waiting.closed)
    }

    /// No request is given out any more.
    pub fn close(&self) {
        if let Some(waiting) = self.queues.lock().connections.get_mut(&self.number) {
            waiting.closed = true;
        }
        self.queues.changed.notify_all();
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        let mut state = self.queues.lock();
        if let Some(waiting) = state.connections.remove(&self.number) {
            state.demand -= waiting.demand.len();
        }
        drop(state);
        self.queues.changed.notify_all();
    }
}

/// A request that is being answered, until this is dropped.
pub(super) struct Turn<'a> {
    queue: &'a Queue<'a>,
    pub asked: Asked,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.queues.lock();
        if let Some(waiting) = state.connections.get_mut(&self.queue.number) {
            waiting.answering = None;
        }
        if self.asked.class == Class::Demand {
            state.demand -= 1;
        }
        drop(state);
        self.queue.queues.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(number: u32, class: Class) -> Asked {
        let units = Units {
            volume: 0,
            first: number.into(),
            count: 1,
        };
        Asked {
            number,
            units,
            class,
        }
    }

    fn numbers(queue: &Queue<'_>, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| queue.next().expect("it is open").asked.number)
            .collect()
    }

    #[test]
    fn what_is_waited_for_goes_first() {
        let queues = Queues::new(None);
        let queue = queues.join();
        for (number, class) in [
            (1, Class::Background),
            (2, Class::Demand),
            (3, Class::Background),
            (4, Class::Demand),
        ] {
            queue.put(asked(number, class)).unwrap();
        }
        assert_eq!(numbers(&queue, 4), [2, 4, 1, 3]);
    }

    #[test]
    fn demand_of_another_connection_holds_back_but_not_for_ever() {
        let queues = Queues::new(None);
        let (one, other) = (queues.join(), queues.join());
        one.put(asked(1, Class::Background)).unwrap();
        other.put(asked(1, Class::Demand)).unwrap();
        let now = queues.lock().let_through;
        let next = |after| queues.lock().next(one.number, now + after, Duration::ZERO);
        assert_eq!(next(Duration::ZERO), Err(Some(FLOOR)));
        assert_eq!(next(FLOOR / 4), Err(Some(FLOOR - FLOOR / 4)));
        assert_eq!(next(FLOOR).unwrap().number, 1);
        one.put(asked(2, Class::Background)).unwrap();
        assert!(next(FLOOR).is_err(), "each is held back");
        drop(other);
        assert_eq!(next(FLOOR).unwrap().number, 2, "the demand has gone");
    }

    #[test]
    fn only_what_nobody_waits_for_keeps_to_the_rate() {
        let queues = Queues::new(Some(1));
        let queue = queues.join();
        queues.count(1 << 20);
        let debt = queues.limit.debt(Instant::now());
        assert!(!debt.is_zero());
        queue.put(asked(1, Class::Background)).unwrap();
        let next = || queues.lock().next(queue.number, Instant::now(), debt);
        assert_eq!(next(), Err(Some(debt)));
        queue.put(asked(2, Class::Demand)).unwrap();
        assert_eq!(next().unwrap().number, 2);
    }

    #[test]
    fn a_request_that_is_being_answered_still_counts() {
        let queues = Queues::new(None);
        let (one, other) = (queues.join(), queues.join());
        other.put(asked(1, Class::Demand)).unwrap();
        let turn = other.next().unwrap();
        one.put(asked(1, Class::Background)).unwrap();
        let now = queues.lock().let_through;
        assert!(queues.lock().next(one.number, now, Duration::ZERO).is_err());
        assert!(other.put(asked(1, Class::Demand)).is_err(), "same number");
        drop(turn);
        assert!(queues.lock().next(one.number, now, Duration::ZERO).is_ok());
        other.put(asked(1, Class::Demand)).unwrap();
    }

    #[test]
    fn what_a_peer_may_leave_waiting_is_bounded() {
        let queues = Queues::new(None);
        let queue = queues.join();
        for number in 0..MAX_ASKED as u32 {
            let class = [Class::Demand, Class::Background][number as usize % 2];
            queue.put(asked(number, class)).unwrap();
        }
        queue.put(asked(1000, Class::Demand)).unwrap_err();
        queue.close();
        assert!(queue.next().is_none());
        drop(queue);
        assert_eq!(queues.connections(), 0);
        assert_eq!(queues.lock().demand, 0);
    }
}
