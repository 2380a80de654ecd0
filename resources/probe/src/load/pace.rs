//! How fast requests follow each other.

use super::options::Pace;
use crate::clock::Clock;

pub struct Pacer {
    pace: Pace,
    hz: u64,
    next_at: u64,
}

impl Pacer {
    pub fn new(pace: Pace, clock: &Clock) -> Self {
        Self {
            pace,
            hz: clock.tsc_khz * 1000,
            next_at: 0,
        }
    }

    pub fn due(&self, now: u64) -> bool {
        now >= self.next_at
    }

    /// A request was made. What a standstill of more than 10 ms missed is not made up for.
    pub fn spend(&mut self, bytes: u64, now: u64) {
        let cycles = |amount: u64, per_s: u64| {
            (u128::from(amount) * u128::from(self.hz) / u128::from(per_s)) as u64
        };
        let cost = match self.pace {
            Pace::Fastest => return,
            Pace::Requests(per_s) => cycles(1, per_s),
            Pace::Bytes(per_s) => cycles(bytes, per_s),
        };
        self.next_at = self.next_at.max(now.saturating_sub(self.hz / 100)) + cost;
    }
}
