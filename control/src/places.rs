//! Places for connections: so many at once, and none that says nothing keeps out one that does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How long nobody is taken in after that failed, as for want of descriptors.
pub(crate) const RESPITE: Duration = Duration::from_millis(100);

/// The place of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Requests that are being answered.
    busy: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    idle_since: Instant,
    given_up: bool,
    reader: Option<Waker>,
}

/// As long as it lives, its connection is being answered, and keeps its place.
#[derive(Debug)]
pub(crate) struct Busy(Place);

impl Place {
    fn new() -> Self {
        Self(Arc::new(Inner {
            busy: AtomicUsize::new(0),
            state: Mutex::new(State {
                idle_since: Instant::now(),
                given_up: false,
                reader: None,
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to answer a request.
    pub(crate) fn busy(&self) -> Busy {
        self.0.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    /// Since when nothing was asked of it, if nothing is.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (self.0.busy.load(Ordering::SeqCst) == 0 && !state.given_up).then_some(state.idle_since)
    }

    /// Ends its connection as if the client had.
    fn give_up(&self) {
        let mut state = self.state();
        state.given_up = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Whether its connection is to end; wakes `reader` when it is.
    pub(crate) fn is_given_up(&self, reader: &Waker) -> bool {
        let mut state = self.state();
        state.reader = Some(reader.clone());
        state.given_up
    }

    /// Waits until its connection is to end.
    pub(crate) async fn given_up(&self) {
        std::future::poll_fn(|cx| match self.is_given_up(cx.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().idle_since = Instant::now();
        self.0.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The places that there are.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    taken: Vec<Place>,
}

impl Places {
    /// `most` places, all free.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Vec::new(),
        }
    }

    /// A place for one more; that of the one who has said nothing for the longest time when there is no
    /// other. `None` when all are being answered.
    pub(crate) fn take(&mut self) -> Option<Place> {
        // Connections hold theirs as long as they live.
        self.taken.retain(|place| Arc::strong_count(&place.0) > 1);
        if self.taken.len() >= self.most && !self.give_up_longest_idle() {
            return None;
        }
        let place = Place::new();
        self.taken.push(place.clone());
        Some(place)
    }

    /// Ends the connection that has said nothing for the longest time, if one says nothing.
    pub(crate) fn give_up_longest_idle(&mut self) -> bool {
        let idle = self.taken.iter().enumerate();
        let longest = idle
            .filter_map(|(at, place)| Some((place.idle_since()?, at)))
            .min();
        match longest {
            Some((_, at)) => {
                self.taken.swap_remove(at).give_up();
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_the_busy_do_not() {
        let mut places = Places::new(2);
        let (first, second) = (places.take().unwrap(), places.take().unwrap());
        let busy = first.busy();
        let third = places.take().unwrap();
        assert!(second.state().given_up && !first.state().given_up);
        let _busy = third.busy();
        assert!(places.take().is_none(), "all are being answered");
        drop(busy);
        assert!(places.take().is_some());
        assert!(first.state().given_up);
    }
}
