//! Where the threads of a device's queues stop, deterministically, and how many requests are in flight.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::locked::locked;

#[derive(Debug, Default)]
struct State {
    /// How many keep it closed.
    closers: usize,
    /// Threads that exist.
    threads: usize,
    /// Threads that wait at it.
    waiting: usize,
    stop: bool,
}

/// Lets threads through while nobody keeps it closed.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the gate is closed or stopped; spares a lock per request.
    closed: AtomicBool,
    /// Requests that threads have begun and that have not ended, with whomever they are.
    in_flight: AtomicUsize,
}

/// A thread that goes through the gate, as long as it lives; also when it panics.
#[derive(Debug)]
pub(super) struct GatedThread<'g>(&'g Gate);

impl Gate {
    /// Counts a thread that is about to be started, so that whoever closes the gate waits for it too.
    pub(super) fn expect(&self) {
        locked(&self.state).threads += 1;
    }

    /// Takes back an [`Gate::expect`] whose thread could not be started.
    pub(super) fn unexpect(&self) {
        locked(&self.state).threads -= 1;
        self.changed.notify_all();
    }

    /// Begins the life of a thread that was expected.
    pub(super) fn enter(&self) -> GatedThread<'_> {
        GatedThread(self)
    }

    /// Whether a thread should finish its request and come to [`GatedThread::wait_open`].
    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Counts a request that a thread begins, which is not behind the gate.
    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// The request has ended, on any thread.
    pub(super) fn end(&self) {
        // In one order with `close`: either this thread sees that somebody may wait, or it is counted out.
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            drop(locked(&self.state));
            self.changed.notify_all();
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Closes the gate; threads come to wait there one by one. `wake` wakes them.
    pub(super) fn close(&self, wake: impl Fn()) {
        let mut state = locked(&self.state);
        state.closers += 1;
        self.closed.store(true, Ordering::SeqCst);
        drop(state);
        wake();
    }

    /// Waits until all threads wait at the gate that was closed, and no request is in flight;
    /// whether it is so in time.
    pub(super) fn drained_within(&self, patience: Duration) -> bool {
        let state = locked(&self.state);
        let moving = |state: &mut State| state.waiting < state.threads || self.in_flight() > 0;
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, moving)
            .unwrap_or_else(PoisonError::into_inner);
        !moving(&mut state)
    }

    /// Waits until there are no threads any more; whether there are none in time.
    pub(super) fn left_within(&self, patience: Duration) -> bool {
        let state = locked(&self.state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| state.threads > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.threads == 0
    }

    /// Opens the gate again, unless somebody else keeps it closed.
    pub(super) fn open(&self) {
        let mut state = locked(&self.state);
        state.closers -= 1;
        if state.closers == 0 {
            self.closed.store(state.stop, Ordering::Release);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Lets all threads end, closed or not.
    pub(super) fn stop(&self) {
        locked(&self.state).stop = true;
        self.closed.store(true, Ordering::Release);
        self.changed.notify_all();
    }
}

impl GatedThread<'_> {
    /// Waits while the gate is closed; `false` when the thread is to end.
    pub(super) fn wait_open(&self) -> bool {
        if !self.0.closed() {
            return true;
        }
        let mut state = locked(&self.0.state);
        state.waiting += 1;
        self.0.changed.notify_all();
        while state.closers > 0 && !state.stop {
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        !state.stop
    }
}

impl Drop for GatedThread<'_> {
    fn drop(&mut self) {
        locked(&self.0.state).threads -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread::JoinHandle;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Closes the gate and waits until all threads wait at it.
    fn close(gate: &Gate) {
        gate.close(|| {});
        assert!(gate.drained_within(LIMIT));
    }

    /// Threads that count their rounds while the gate lets them.
    fn threads(gate: &Arc<Gate>, rounds: &Arc<AtomicUsize>) -> Vec<JoinHandle<()>> {
        (0..4)
            .map(|_| {
                gate.expect();
                let (gate, rounds) = (Arc::clone(gate), Arc::clone(rounds));
                std::thread::spawn(move || {
                    let thread = gate.enter();
                    while thread.wait_open() {
                        // Long enough to be met in the middle.
                        std::thread::sleep(Duration::from_micros(200));
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect()
    }

    #[test]
    fn no_thread_moves_while_the_gate_is_closed_and_all_do_afterwards() {
        let (gate, rounds) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let threads = threads(&gate, &rounds);
        for _ in 0..50 {
            close(&gate);
            close(&gate);
            gate.open();
            let closed_at = rounds.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(500));
            assert_eq!(rounds.load(Ordering::SeqCst), closed_at);
            gate.open();
            while rounds.load(Ordering::SeqCst) == closed_at {
                std::thread::yield_now();
            }
        }
        gate.stop();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_closed_gate_lets_threads_end() {
        let (gate, rounds) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let threads = threads(&gate, &rounds);
        close(&gate);
        gate.stop();
        for thread in threads {
            thread.join().unwrap();
        }
        // Nobody is left to wait for.
        close(&gate);
    }

    #[test]
    fn a_thread_that_does_not_come_is_told_of_and_kept_behind_the_gate() {
        let gate = Arc::new(Gate::default());
        gate.expect();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (passed, passes) = std::sync::mpsc::channel::<()>();
        let rounds = Arc::new(AtomicUsize::new(0));
        let thread = std::thread::spawn({
            let (gate, rounds) = (Arc::clone(&gate), Arc::clone(&rounds));
            move || {
                let thread = gate.enter();
                while thread.wait_open() {
                    let _ = passed.send(());
                    let _ = wait.recv();
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        passes.recv().unwrap();
        gate.close(|| {});
        assert!(!gate.drained_within(Duration::from_millis(20)));
        go_on.send(()).unwrap();
        assert!(gate.drained_within(LIMIT));
        assert_eq!(rounds.load(Ordering::SeqCst), 1);
        gate.stop();
        drop(go_on);
        thread.join().unwrap();
    }

    #[test]
    fn what_is_in_flight_is_waited_for_when_all_threads_wait() {
        let gate = Arc::new(Gate::default());
        gate.begin();
        gate.begin();
        gate.close(|| {});
        gate.end();
        assert!(!gate.drained_within(Duration::from_millis(20)));
        let ending = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.end()
        });
        assert!(gate.drained_within(LIMIT));
        ending.join().unwrap();
    }

    #[test]
    fn a_thread_that_panics_is_not_waited_for() {
        let gate = Arc::new(Gate::default());
        gate.expect();
        let thread = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let _thread = gate.enter();
                panic!("on purpose");
            }
        });
        close(&gate);
        gate.open();
        assert!(thread.join().is_err());
    }
}
