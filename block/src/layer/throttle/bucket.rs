//! A bucket of tokens, in which a rate lets so many come.

use std::time::{Duration, Instant};

/// How much may be taken at once, after nothing was for a while: what comes in so long.
const BURST: Duration = Duration::from_millis(100);
/// The longest time for which a bucket says to wait, so that a rate that is raised is soon noticed.
const LONGEST: Duration = Duration::from_secs(1);

/// Tokens that come at a rate. More may be taken than are there, and have to come before any is taken again: so a
/// request that is larger than the bucket gets through too.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Tokens a second; `None` for any number.
    rate: Option<u64>,
    /// Tokens; less than 0 when more was taken than was there.
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Option<u64>, now: Instant) -> Self {
        let mut bucket = Self {
            rate,
            level: 0.0,
            at: now,
        };
        bucket.level = bucket.capacity();
        bucket
    }

    fn capacity(&self) -> f64 {
        // At least one token, which is a request.
        self.rate
            .map_or(0.0, |rate| (rate as f64 * BURST.as_secs_f64()).max(1.0))
    }

    /// Changes the rate; what was taken in advance has to come at the new one.
    pub(crate) fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.refill(now);
        if self.rate.is_none() {
            self.level = 0.0;
        }
        self.rate = rate;
        self.level = self.level.min(self.capacity());
    }

    fn refill(&mut self, now: Instant) {
        let came = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if let Some(rate) = self.rate {
            self.level = (self.level + came * rate as f64).min(self.capacity());
        }
    }

    /// How long it is until anything may be taken; nothing when it may be now.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        let rate = self.rate?;
        if self.level > 0.0 {
            return None;
        }
        if rate == 0 {
            return Some(LONGEST);
        }
        // More than nothing, so that whoever waits does not wait for nothing.
        let seconds = ((1.0 - self.level) / rate as f64).clamp(1e-6, LONGEST.as_secs_f64());
        Some(Duration::from_secs_f64(seconds))
    }

    /// Takes so many.
    pub(crate) fn take(&mut self, tokens: u64) {
        if self.rate.is_some() {
            self.level -= tokens as f64;
        }
    }

    /// Puts back what was taken for nothing.
    pub(crate) fn give_back(&mut self, tokens: u64) {
        if self.rate.is_some() {
            self.level = (self.level + tokens as f64).min(self.capacity());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Takes tokens whenever it may for some seconds; all that it got.
    fn taken(bucket: &mut Bucket, from: Instant, seconds: u64, each: u64) -> u64 {
        let (mut now, mut taken) = (from, 0);
        while now < from + Duration::from_secs(seconds) {
            match bucket.wait(now) {
                None => {
                    bucket.take(each);
                    taken += each;
                }
                Some(wait) => {
                    assert!(wait > Duration::ZERO && wait <= LONGEST);
                    now += wait;
                }
            }
        }
        taken
    }

    #[test]
    fn as_much_is_taken_as_comes_whatever_the_size_of_each() {
        let now = Instant::now();
        for (rate, each) in [
            (1000, 1),
            (1000, 7),
            (1 << 20, 4096),
            (4096, 1 << 20),
            (3, 1),
        ] {
            let mut bucket = Bucket::new(Some(rate), now);
            let got = taken(&mut bucket, now, 1000, each) as f64;
            let came = rate as f64 * 1000.0;
            let most = came + bucket.capacity() + each as f64;
            assert!(
                got >= came * 0.99 - each as f64 && got <= most,
                "{rate} {each}: {got}"
            );
        }
    }

    #[test]
    fn a_bucket_that_was_left_alone_holds_a_burst_and_no_more() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Some(1000), now);
        let later = now + Duration::from_secs(3600);
        for _ in 0..100 {
            assert_eq!(bucket.wait(later), None);
            bucket.take(1);
        }
        assert!(bucket.wait(later).is_some());
    }

    #[test]
    fn a_rate_of_any_number_never_waits_and_one_of_none_always_does() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, now);
        bucket.take(u64::MAX);
        assert_eq!(bucket.wait(now), None);
        bucket.set_rate(Some(0), now);
        bucket.take(1);
        assert_eq!(bucket.wait(now + Duration::from_secs(9)), Some(LONGEST));
        bucket.set_rate(Some(1000), now + Duration::from_secs(9));
        assert!(bucket.wait(now + Duration::from_secs(9) + ms(10)).is_none());
    }
}
