//! Places for those who connect: some for who has not said yet what it wants, others for who has.
//!
//! Whoever connects and says nothing costs a thread and a descriptor. There are few places for such
//! strangers, and the one who has had its place for longest goes when another comes: who is in earnest says
//! its hello at once, and has left by then. Each keeps its place for a moment all the same, in which a busy
//! host comes to reading that hello; those who come meanwhile wait where the kernel queues them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::Connection;

/// Connections that have not said yet what they want.
const STRANGERS: usize = 32;
/// Connections that have said it, and are being answered.
const KNOWN: usize = 32;
/// How long nobody has to go for another.
const GRACE: Duration = Duration::from_millis(250);

struct Stranger {
    number: u64,
    since: Instant,
    connection: Arc<dyn Connection>,
}

#[derive(Default)]
struct Taken {
    /// In the order in which they came.
    strangers: VecDeque<Stranger>,
    /// Strangers whose connection was ended, as far as their thread has not noticed yet.
    leaving: usize,
    known: usize,
    last: u64,
    closed: bool,
}

/// Who is in, of those that have connected.
#[derive(Default)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
    left: Condvar,
}

/// The place of one connection, which it leaves when this is dropped.
pub(crate) struct Place<'a> {
    places: &'a Places,
    number: u64,
    is_known: bool,
}

/// Who has to go for a newcomer.
pub(crate) struct Evicted(pub Arc<dyn Connection>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a stranger, and who goes for it; none when nobody is taken in any more.
    pub fn take(&self, connection: &Arc<dyn Connection>) -> Option<(Place<'_>, Option<Evicted>)> {
        let mut taken = self.lock();
        loop {
            if taken.closed {
                return None;
            }
            let Some(time) = taken.until_a_place(Instant::now()) else {
                break;
            };
            taken = self
                .left
                .wait_timeout(taken, time)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let evicted = if taken.strangers.len() >= STRANGERS {
            taken.leaving += 1;
            taken
                .strangers
                .pop_front()
                .map(|oldest| Evicted(oldest.connection))
        } else {
            None
        };
        taken.last += 1;
        let number = taken.last;
        taken.strangers.push_back(Stranger {
            number,
            since: Instant::now(),
            connection: connection.clone(),
        });
        let place = Place {
            places: self,
            number,
            is_known: false,
        };
        Some((place, evicted))
    }

    /// Takes nobody in any more and ends the connections of all strangers.
    pub fn close(&self) {
        let strangers = {
            let mut taken = self.lock();
            taken.closed = true;
            taken.leaving += taken.strangers.len();
            std::mem::take(&mut taken.strangers)
        };
        self.left.notify_all();
        strangers
            .iter()
            .for_each(|stranger| stranger.connection.shutdown());
    }
}

/// What becomes of a stranger that has said its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is answered.
    Known,
    /// There are too many who have said theirs.
    NoPlace,
    /// Its connection was ended meanwhile.
    Ended,
}

impl Place<'_> {
    /// Moves to a place of those who have said what they want.
    pub fn become_known(&mut self) -> Admission {
        let mut taken = self.places.lock();
        let Some(at) = taken.position(self.number) else {
            return Admission::Ended;
        };
        if taken.known >= KNOWN {
            return Admission::NoPlace;
        }
        taken.strangers.remove(at);
        taken.known += 1;
        self.is_known = true;
        Admission::Known
    }
}

impl Taken {
    fn position(&self, number: u64) -> Option<usize> {
        self.strangers
            .iter()
            .position(|stranger| stranger.number == number)
    }

    /// How long there is no place for another unless somebody leaves; `None` when there is one.
    fn until_a_place(&self, now: Instant) -> Option<Duration> {
        // Their connections were ended, so they go at once; this only bounds how many there are.
        if self.leaving >= STRANGERS {
            return Some(GRACE);
        }
        if self.strangers.len() < STRANGERS {
            return None;
        }
        let had = now.saturating_duration_since(self.strangers.front()?.since);
        GRACE.checked_sub(had).filter(|left| !left.is_zero())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        {
            let mut taken = self.places.lock();
            if self.is_known {
                taken.known -= 1;
            } else if let Some(at) = taken.position(self.number) {
                taken.strangers.remove(at);
            } else {
                taken.leaving -= 1;
            }
        }
        self.places.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory::network;
    use crate::transport::{Connect, Patience};

    #[test]
    fn nobody_goes_for_another_who_had_no_time_to_say_its_hello() {
        let (connect, _listen) = network(&[]);
        let patience = Patience {
            timeout: Duration::from_secs(5),
            give_up: &|| false,
        };
        let connection: Arc<dyn Connection> = connect.connect(patience).unwrap().into();
        let now = Instant::now();
        let until = |strangers: usize, later| {
            let came = |number| Stranger {
                number,
                since: now,
                connection: connection.clone(),
            };
            let taken = Taken {
                strangers: (0..strangers as u64).map(came).collect(),
                ..Taken::default()
            };
            taken.until_a_place(now + later)
        };
        assert_eq!(until(0, Duration::ZERO), None);
        assert_eq!(until(STRANGERS - 1, Duration::ZERO), None);
        assert_eq!(until(STRANGERS, Duration::ZERO), Some(GRACE));
        assert_eq!(until(STRANGERS, GRACE / 2), Some(GRACE / 2));
        assert_eq!(until(STRANGERS, GRACE), None);
        assert_eq!(until(STRANGERS, GRACE * 100), None);
    }
}
