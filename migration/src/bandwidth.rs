//! The bandwidth limit: one bucket for all streams, whose rate may change at any time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Control;

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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.filled).as_secs_f64();
        state.filled = now;
        state.tokens = (state.tokens + passed * rate).min(BURST.as_secs_f64() * rate);
        if state.tokens < 0.0 {
            return Err(Duration::from_secs_f64((-state.tokens / rate).min(1.0)));
        }
        // A frame may overdraw; who comes next waits for it.
        state.tokens -= bytes as f64;
        Ok(())
    }

    /// Waits until `bytes` may be sent under the limits of `control`, or `stopped` says not to.
    pub fn acquire(&self, bytes: usize, control: &Control, stopped: impl Fn() -> bool) {
        while let Some(rate) = control.limits().bandwidth {
            match self.take(bytes, rate, Instant::now()) {
                Ok(()) => return,
                Err(_) if stopped() => return,
                Err(wait) => {
                    control.wait_for_change(wait.clamp(Duration::from_micros(100), SLICE));
                }
            }
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
