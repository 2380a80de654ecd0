//! What a user can do with a copy while it runs, and see of it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::CopyError;
use crate::layer::throttle::bucket::Bucket;

/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(3600);

/// How far a copy is allowed to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// On.
    Running,
    /// Nowhere, until it is told to go on.
    Paused,
    /// It is being undone.
    Cancelled,
    /// Its end has begun: it is too late to cancel it.
    Ending,
}

/// How much is copied.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Passes that have begun.
    pub passes: u32,
    /// Bytes that were copied.
    pub done: u64,
    /// What they will be, with all that is known to be left.
    pub total: u64,
    /// Bytes a second, over the time in which nothing held the copy up but its limit.
    pub rate: f64,
    /// Bytes a second that are written to the disk anew, by the last pass.
    pub dirtied: f64,
}

impl Progress {
    /// Forecast of the time left; `None` where there is no end.
    pub fn left(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.done) as f64;
        let gain = self.rate - self.dirtied;
        let seconds = left / gain;
        (self.rate > 0.0 && gain > 0.0 && seconds < 1e9).then(|| Duration::from_secs_f64(seconds))
    }
}

/// Whether what was done can be undone by a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    Possible,
    TooLate,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    undo: Undo,
    bucket: Bucket,
    bandwidth: Option<u64>,
    limit: Duration,
    progress: Progress,
    /// Time in which it was not paused, until `since`.
    active: Duration,
    since: Instant,
}

/// What steers a copy, from any thread.
#[derive(Debug)]
pub struct Steering {
    state: Mutex<State>,
    changed: Condvar,
}

impl Steering {
    /// For a copy that reads at most `bandwidth` bytes a second, and at the end of which requests may wait for `limit`.
    pub fn new(bandwidth: Option<u64>, limit: Duration) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(State {
                standing: Standing::Running,
                undo: Undo::Possible,
                bucket: Bucket::new(bandwidth, now),
                bandwidth,
                limit,
                progress: Progress::default(),
                active: Duration::ZERO,
                since: now,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it may go.
    pub fn standing(&self) -> Standing {
        self.state().standing
    }

    /// How much is copied.
    pub fn progress(&self) -> Progress {
        self.state().progress
    }

    /// Most bytes a second.
    pub fn bandwidth(&self) -> Option<u64> {
        self.state().bandwidth
    }

    /// Longest that requests may wait at the end.
    pub fn limit(&self) -> Duration {
        self.state().limit
    }

    /// Changes the most bytes a second; acts at once.
    pub fn set_bandwidth(&self, bandwidth: Option<u64>) {
        let mut state = self.state();
        state.bandwidth = bandwidth;
        state.bucket.set_rate(bandwidth, Instant::now());
        self.changed.notify_all();
    }

    /// Changes how long requests may wait at the end.
    pub fn set_limit(&self, limit: Duration) {
        self.state().limit = limit;
        self.changed.notify_all();
    }

    /// Has whoever waits by [`Steering::is_ready`] look around.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Whether something may be read now; where not, waits until something has changed first, or for a second.
    ///
    /// # Errors
    /// [`CopyError::Cancelled`].
    pub(crate) fn is_ready(&self) -> Result<bool, CopyError> {
        let mut state = self.state();
        let wait = match state.standing {
            Standing::Cancelled => return Err(CopyError::Cancelled),
            Standing::Paused => Duration::from_secs(1),
            Standing::Running | Standing::Ending => match state.bucket.wait(Instant::now()) {
                Some(wait) => wait,
                None => return Ok(true),
            },
        };
        drop(self.wait(state, wait));
        Ok(false)
    }

    /// Asks it to stop; whether it still can.
    pub fn cancel(&self) -> bool {
        let mut state = self.state();
        if state.standing == Standing::Ending || state.undo == Undo::TooLate {
            return false;
        }
        state.standing = Standing::Cancelled;
        self.changed.notify_all();
        true
    }

    /// The end came about, and what is left goes on: it may be paused, and stopped by [`Steering::stop`] alone.
    pub fn go_on_for_good(&self) {
        self.state().undo = Undo::TooLate;
        self.give_back();
    }

    /// Stops what goes on for good; whether there is such.
    pub fn stop(&self) -> bool {
        let mut state = self.state();
        if state.undo == Undo::Possible || state.standing == Standing::Ending {
            return false;
        }
        state.standing = Standing::Cancelled;
        self.changed.notify_all();
        true
    }

    /// Has it wait; whether it does.
    pub fn pause(&self) -> bool {
        self.switch(Standing::Running, Standing::Paused)
    }

    /// Has it go on after a pause; whether it does.
    pub fn resume(&self) -> bool {
        self.switch(Standing::Paused, Standing::Running)
    }

    /// From here on it cannot be cancelled, unless it is given back; `false` when it was before, or is to wait.
    pub fn begin_end(&self) -> bool {
        self.switch(Standing::Running, Standing::Ending)
    }

    /// The end did not come about: it may be cancelled again.
    pub fn give_back(&self) {
        self.switch(Standing::Ending, Standing::Running);
    }

    /// Goes over to `to`, where it is there already or in `from`.
    fn switch(&self, from: Standing, to: Standing) -> bool {
        let mut state = self.state();
        if state.standing == from {
            let now = Instant::now();
            if from == Standing::Running {
                let ran = now - state.since;
                state.active += ran;
            }
            state.since = now;
            state.standing = to;
            self.changed.notify_all();
        }
        state.standing == to
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, most: Duration) -> MutexGuard<'s, State> {
        let woken = self.changed.wait_timeout(state, most);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes so many bytes that are read in any case; who comes next waits for them.
    pub(crate) fn spend(&self, bytes: u64) {
        self.state().bucket.take(bytes);
    }

    /// Waits until so many bytes may be read, and takes them; how long.
    pub(super) fn take(&self, bytes: u64) -> Result<Duration, CopyError> {
        let began = Instant::now();
        while !self.take_within(bytes, FOREVER)? {}
        Ok(began.elapsed())
    }

    /// As [`Steering::take`], but waits for `most` at most; whether it has taken them.
    pub(super) fn take_within(&self, bytes: u64, most: Duration) -> Result<bool, CopyError> {
        let until = Instant::now() + most;
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let wait = match state.standing {
                Standing::Cancelled => return Err(CopyError::Cancelled),
                Standing::Paused => Some(Duration::from_secs(1)),
                Standing::Running | Standing::Ending => state.bucket.wait(now),
            };
            let left = until.saturating_duration_since(now);
            match wait {
                None => {
                    state.bucket.take(bytes);
                    return Ok(true);
                }
                Some(_) if left.is_zero() => return Ok(false),
                Some(wait) => state = self.wait(state, wait.min(left)),
            }
        }
    }

    /// Waits for `time`, or until it is cancelled.
    ///
    /// # Errors
    /// [`CopyError::Cancelled`].
    pub fn rest(&self, time: Duration) -> Result<(), CopyError> {
        let until = Instant::now() + time;
        let mut state = self.state();
        loop {
            if state.standing == Standing::Cancelled {
                return Err(CopyError::Cancelled);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && state.standing != Standing::Paused {
                return Ok(());
            }
            state = self.wait(state, left.max(Duration::from_millis(1)));
        }
    }

    /// Waits as long as it is paused.
    ///
    /// # Errors
    /// [`CopyError::Cancelled`].
    pub fn await_running(&self) -> Result<(), CopyError> {
        let mut state = self.state();
        loop {
            match state.standing {
                Standing::Cancelled => return Err(CopyError::Cancelled),
                Standing::Paused => state = self.wait(state, FOREVER),
                Standing::Running | Standing::Ending => return Ok(()),
            }
        }
    }

    /// So many bytes have been copied.
    pub(crate) fn copied(&self, bytes: u64) {
        let mut state = self.state();
        state.progress.done += bytes;
        let progress = state.progress;
        state.progress.total = progress.total.max(progress.done);
        let active = state.active + state.since.elapsed();
        state.progress.rate = state.progress.done as f64 / active.as_secs_f64().max(1e-6);
    }

    /// So many bytes are left of what is copied once.
    pub(crate) fn set_left(&self, left: u64) {
        let progress = &mut self.state().progress;
        progress.total = progress.done + left;
    }

    /// A pass begins that has `left` bytes to copy; `dirtied` a second were written during the one before.
    pub fn begin_pass(&self, left: u64, dirtied: f64) {
        let progress = &mut self.state().progress;
        progress.passes += 1;
        progress.total = progress.done + left;
        progress.dirtied = dirtied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_cancelled_paused_and_ended_follows_where_it_is() {
        let steering = Steering::new(None, Duration::ZERO);
        assert!(steering.pause() && steering.pause());
        assert!(!steering.begin_end(), "it waits");
        assert!(steering.resume() && steering.resume());
        assert!(steering.begin_end());
        assert!(!steering.cancel() && !steering.pause());
        steering.give_back();
        assert!(steering.cancel() && steering.cancel());
        assert!(!steering.begin_end() && !steering.pause() && !steering.resume());
        assert!(matches!(steering.take(1), Err(CopyError::Cancelled)));
        let rested = steering.rest(Duration::from_secs(3600));
        assert!(matches!(rested, Err(CopyError::Cancelled)));
    }

    #[test]
    fn what_goes_on_for_good_is_paused_and_stopped_and_never_cancelled() {
        let steering = Steering::new(None, Duration::ZERO);
        assert!(!steering.stop(), "a cancel undoes it");
        assert!(steering.begin_end());
        steering.go_on_for_good();
        assert!(!steering.cancel() && steering.pause() && !steering.cancel());
        assert!(steering.resume() && steering.take(1).is_ok());
        assert!(steering.stop());
        assert!(matches!(steering.take(1), Err(CopyError::Cancelled)));
    }

    #[test]
    fn a_limit_that_is_lifted_acts_at_once() {
        let steering = Steering::new(Some(1), Duration::ZERO);
        steering.take(1 << 40).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| steering.take(1).map(drop));
            steering.set_bandwidth(None);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn there_is_a_forecast_as_long_as_more_is_copied_than_written() {
        let progress = Progress {
            passes: 1,
            done: 100,
            total: 1100,
            rate: 20.0,
            dirtied: 10.0,
        };
        assert_eq!(progress.left(), Some(Duration::from_secs(100)));
        for dirtied in [20.0, 30.0] {
            let busy = Progress {
                dirtied,
                ..progress
            };
            assert_eq!(busy.left(), None);
        }
        assert_eq!(Progress::default().left(), None);
    }
}
