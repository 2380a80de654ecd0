//! Limits on bandwidth: one bucket for all streams, whose rate may change at any time at the source.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::steering::Steering;

/// Longest wait before the limits are looked at again.
const SLICE: Duration = Duration::from_millis(20);
/// What may be sent at once after a pause, as time at the full rate.
const BURST: Duration = Duration::from_millis(20);

struct State {
    /// Bytes that may be sent now; negative after a frame that took more than there was.
    tokens: f64,
    filled: Instant,
}

/// A token bucket.
pub struct Bucket {
    state: Mutex<State>,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                tokens: 0.0,
                filled: Instant::now(),
            }),
        }
    }
}

impl Bucket {
    /// Takes `bytes` out, or says how long to wait before asking again.
    fn take(&self, bytes: usize, rate: u64, now: Instant) -> Result<(), Duration> {
        let rate = rate.max(1) as f64;
        let mut state = self.filled(rate, now);
        if state.tokens < 0.0 {
            return Err(Duration::from_secs_f64((-state.tokens / rate).min(1.0)));
        }
        // A frame may overdraw; who comes next waits for it.
        state.tokens -= bytes as f64;
        Ok(())
    }

    fn filled(&self, rate: f64, now: Instant) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.filled).as_secs_f64();
        state.filled = now;
        state.tokens = (state.tokens + passed * rate).min(BURST.as_secs_f64() * rate);
        state
    }

    /// Waits until `bytes` may be sent under the limits of `control`, or `stopped` says not to.
    pub fn acquire(&self, bytes: usize, steering: &Steering, stopped: impl Fn() -> bool) {
        while let Some(rate) = steering.limits().bandwidth {
            match self.take(bytes, rate, Instant::now()) {
                Ok(()) => return,
                Err(_) if stopped() => return,
                Err(wait) => {
                    steering.wait_for_change(wait.clamp(Duration::from_micros(100), SLICE));
                }
            }
        }
    }
}

/// A limit that stays: the destination's own on what comes in, or that of whoever serves a pull on what goes out; for all
/// connections.
#[derive(Default)]
pub(crate) struct FixedLimit {
    bucket: Bucket,
    /// Bytes per second; `None` is unlimited.
    rate: Option<u64>,
}

impl FixedLimit {
    /// So many bytes per second, or any number.
    pub fn at(rate: Option<u64>) -> Self {
        Self {
            bucket: Bucket::default(),
            rate,
        }
    }

    /// Counts `bytes` that go in any case; others wait for them.
    pub fn overdraw(&self, bytes: usize) {
        if let Some(rate) = self.rate {
            let rate = rate.max(1) as f64;
            self.bucket.filled(rate, Instant::now()).tokens -= bytes as f64;
        }
    }

    /// How long whoever can wait does, for what has gone already.
    pub fn debt(&self, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let rate = rate.max(1) as f64;
        let tokens = self.bucket.filled(rate, now).tokens;
        Duration::from_secs_f64((-tokens / rate).clamp(0.0, 1.0))
    }

    /// Waits until `bytes` more may be transferred, or `stopped` says not to.
    pub fn acquire(&self, bytes: usize, stopped: impl Fn() -> bool) {
        let Some(rate) = self.rate else { return };
        while let Err(wait) = self.bucket.take(bytes, rate, Instant::now()) {
            if stopped() {
                return;
            }
            std::thread::sleep(wait.clamp(Duration::from_micros(100), SLICE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_time() {
        let bucket = Bucket::default();
        let mut now = Instant::now();
        let end = now + Duration::from_secs(10);
        let mut sent = 0usize;
        while now < end {
            match bucket.take(64 << 10, 1 << 20, now) {
                Ok(()) => sent += 64 << 10,
                Err(wait) => now += wait.max(Duration::from_micros(1)),
            }
        }
        let expected = 10 << 20;
        assert!(sent.abs_diff(expected) < expected / 50, "{sent}");
    }

    #[test]
    fn a_pause_gives_no_burst_beyond_its_bound() {
        let bucket = Bucket::default();
        let mut now = Instant::now() + Duration::from_secs(100);
        let mut sent = 0;
        while bucket.take(1000, 1_000_000, now).is_ok() {
            sent += 1000;
            now += Duration::from_nanos(1);
        }
        assert!(sent <= 21_000, "{sent}");
    }
}
