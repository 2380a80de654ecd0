//! Timers of three kinds, none of which may be lost or early.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::faults::Faults;
use super::sys::{self, Clock, TimerFd};

const TIMERFD_INTERVAL: Duration = Duration::from_millis(20);
const SLEEP_INTERVAL: Duration = Duration::from_millis(30);
const ALARM_INTERVAL: Duration = Duration::from_millis(100);
/// A timer that is this late counts as lost; the test holds a closer limit against the downtime.
const LOST: Duration = Duration::from_secs(60);

/// What became of one kind of timer.
#[derive(Debug, Default)]
pub struct Tally {
    /// Expirations seen; those that were told together count each.
    pub expired: AtomicU64,
    /// Longest time between the moment a timer was due and the moment its owner ran.
    latest_ns: AtomicU64,
    latest_at_ns: AtomicU64,
}

impl Tally {
    /// The longest lateness in milliseconds.
    pub fn latest_ms(&self) -> u64 {
        self.latest_ns.load(Relaxed) / 1_000_000
    }

    /// When that was seen, in milliseconds of the monotonic clock.
    pub fn latest_at_ms(&self) -> u64 {
        self.latest_at_ns.load(Relaxed) / 1_000_000
    }

    fn add(&self, expired: u64, late_ns: u64, now: u64) {
        self.expired.fetch_add(expired, Relaxed);
        // One thread adds to a tally.
        if self.latest_ns.fetch_max(late_ns, Relaxed) < late_ns {
            self.latest_at_ns.store(now, Relaxed);
        }
    }
}

/// A periodic timerfd: the kernel's count of expirations is that of the clock.
pub fn watch_timerfd(tally: &Tally, faults: &Faults) {
    let interval = nanoseconds(TIMERFD_INTERVAL);
    let start = Clock::Monotonic.now();
    let timer = match TimerFd::new(start + interval, TIMERFD_INTERVAL) {
        Ok(timer) => timer,
        Err(error) => return faults.tell(&format!("no timerfd: {error}")),
    };
    let mut counter = Counter::new(start, interval);
    while !faults.should_stop() {
        let expired = match timer.wait() {
            Ok(expired) => expired,
            Err(error) => return faults.tell(&format!("timerfd: {error}")),
        };
        let now = Clock::Monotonic.now();
        match counter.see(expired, now) {
            Ok(late) => tally.add(expired, late, now),
            Err(fault) => return faults.tell(&format!("timerfd: {fault}")),
        }
    }
}

/// Sleeps to absolute moments.
pub fn watch_sleep(tally: &Tally, faults: &Faults) {
    let mut deadline = Clock::Monotonic.now();
    while !faults.should_stop() {
        deadline += nanoseconds(SLEEP_INTERVAL);
        sys::sleep_until(deadline);
        let now = Clock::Monotonic.now();
        let Some(late) = now.checked_sub(deadline) else {
            return faults.tell(&format!("nanosleep ended {} ns early", deadline - now));
        };
        tally.add(1, late, now);
        // Those that are past already would only repeat what was just seen.
        deadline = deadline.max(now - late % nanoseconds(SLEEP_INTERVAL));
    }
}

/// `ITIMER_REAL`. Signals that come together become one, so there may be fewer than were due.
pub fn watch_alarms(tally: &Tally, faults: &Faults) {
    let mut alarms = Alarms {
        start: Clock::Monotonic.now(),
        interval: nanoseconds(ALARM_INTERVAL),
        seen: 0,
        last: None,
    };
    if let Err(error) = sys::start_alarms(ALARM_INTERVAL) {
        return faults.tell(&format!("no interval timer: {error}"));
    }
    while !faults.should_stop() {
        if !sys::wait_for_alarm(LOST) {
            return faults.tell(&format!("no SIGALRM within {LOST:?}"));
        }
        let now = Clock::Monotonic.now();
        match alarms.see(now) {
            Ok(late) => tally.add(1, late, now),
            Err(fault) => return faults.tell(&format!("SIGALRM: {fault}")),
        }
    }
}

/// Signals of a periodic timer that is armed again, in phase, when its signal is taken.
struct Alarms {
    start: u64,
    interval: u64,
    seen: u64,
    last: Option<u64>,
}

impl Alarms {
    /// Takes in a signal that came before the clock showed `now`. Gives how late it was: by the time
    /// since the last one, because it is not known at which moment that one was taken.
    fn see(&mut self, now: u64) -> Result<u64, String> {
        self.seen += 1;
        let due = now.saturating_sub(self.start) / self.interval;
        if self.seen > due {
            return Err(format!("{} came when {due} were due", self.seen));
        }
        let last = self.last.replace(now).unwrap_or(self.start);
        Ok(now.saturating_sub(last).saturating_sub(self.interval))
    }
}

/// Holds a timerfd's count against the clock.
struct Counter {
    start: u64,
    interval: u64,
    expired: u64,
    /// Expirations that were due when the clock was last read.
    due_before: u64,
}

impl Counter {
    fn new(start: u64, interval: u64) -> Self {
        Self {
            start,
            interval,
            expired: 0,
            due_before: 0,
        }
    }

    /// Takes in what one read told, which returned before the clock showed `now`. Gives how late the
    /// first of the new expirations was seen.
    fn see(&mut self, expired: u64, now: u64) -> Result<u64, String> {
        let first_due = self.start + (self.expired + 1) * self.interval;
        self.expired += expired;
        let due = now.saturating_sub(self.start) / self.interval;
        if self.expired > due {
            return Err(format!("{} expirations when {due} were due", self.expired));
        }
        // All that were due when the last read had returned are told by this one at the latest.
        if self.expired < self.due_before {
            return Err(format!(
                "{} expirations told, and {} were due before",
                self.expired, self.due_before
            ));
        }
        self.due_before = due;
        let late = now - first_due;
        if late > nanoseconds(LOST) {
            return Err(format!("seen {late} ns late"));
        }
        Ok(late)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expirations_on_time_and_those_told_together_are_right() {
        let mut counter = Counter::new(1_000, 10);
        assert_eq!(counter.see(1, 1_012), Ok(2));
        assert_eq!(counter.see(5, 1_065), Ok(45));
        assert_eq!(counter.see(1, 1_070), Ok(0));
    }

    #[test]
    fn early_expirations_are_found() {
        let mut counter = Counter::new(1_000, 10);
        assert!(counter.see(1, 1_009).is_err());
        let mut counter = Counter::new(1_000, 10);
        counter.see(1, 1_010).unwrap();
        assert!(counter.see(2, 1_025).is_err());
    }

    #[test]
    fn signals_may_be_late_and_fewer_but_not_more_than_were_due() {
        let mut alarms = Alarms {
            start: 1_000,
            interval: 100,
            seen: 0,
            last: None,
        };
        assert_eq!(alarms.see(1_130), Ok(30));
        assert_eq!(alarms.see(1_205), Ok(0));
        assert_eq!(alarms.see(1_650), Ok(345));
        for _ in 0..3 {
            alarms.see(1_651).unwrap();
        }
        assert!(alarms.see(1_652).is_err());
    }

    #[test]
    fn lost_expirations_are_found() {
        let mut counter = Counter::new(1_000, 10);
        // Read late: five are due, of which the next read must tell.
        counter.see(1, 1_051).unwrap();
        assert!(counter.see(1, 1_060).is_err());
    }
}
