//! A subscriber's own queue of events, which stays small however late the subscriber reads.

use std::sync::mpsc::{RecvError, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::History;
use crate::progress::Event;

struct Queue {
    waiting: History,
    /// Nothing more comes, or nobody reads any more.
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The end of a queue where events are told; once it is dropped, no more come.
pub struct EventSender(Arc<Shared>);

/// Events of a migration in their order, as a channel's receiver. Of what was not read in time the
/// first and the newest are told, as to who comes late.
pub struct Events(Arc<Shared>);

impl EventSender {
    /// Tells an event; whether anybody hears it.
    pub fn tell(&self, event: Event) -> bool {
        let mut queue = self.0.lock();
        if queue.closed {
            return false;
        }
        queue.waiting.push(event);
        self.0.changed.notify_all();
        true
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Events {
    /// Both ends of an empty queue.
    pub fn channel() -> (EventSender, Self) {
        Self::after(History::default())
    }

    /// Both ends of a queue in which `past` waits.
    pub(super) fn after(past: History) -> (EventSender, Self) {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: past,
                closed: false,
            }),
            changed: Condvar::new(),
        });
        (EventSender(shared.clone()), Self(shared))
    }

    /// The next event, waited for.
    ///
    /// # Errors
    /// After the last.
    pub fn recv(&self) -> Result<Event, RecvError> {
        let mut queue = self.0.lock();
        loop {
            if let Some(event) = queue.waiting.pop() {
                return Ok(event);
            }
            if queue.closed {
                return Err(RecvError);
            }
            queue = self
                .0
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next event, if it is there.
    ///
    /// # Errors
    /// When there is none yet, or after the last.
    pub fn try_recv(&self) -> Result<Event, TryRecvError> {
        let mut queue = self.0.lock();
        match queue.waiting.pop() {
            Some(event) => Ok(event),
            None if queue.closed => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// The next event, waited for at most for `timeout`.
    ///
    /// # Errors
    /// When none came in time, or after the last.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        let until = Instant::now() + timeout;
        let mut queue = self.0.lock();
        loop {
            if let Some(event) = queue.waiting.pop() {
                return Ok(event);
            }
            if queue.closed {
                return Err(RecvTimeoutError::Disconnected);
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(RecvTimeoutError::Timeout);
            };
            queue = self
                .0
                .changed
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// All events until the last.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}
