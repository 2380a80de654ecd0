//! Turns: on a host with fewer processors than threads that want one, a vCPU whose guest is moved lets
//! the others run after each millisecond.
//!
//! The scheduler takes a processor from a vCPU at its tick (4 ms at 250 Hz), and the threads that waited
//! for it meanwhile then catch up, for twice as long where there are two: gaps that the guest sees, and a
//! move that waits. Shorter turns shorten both.

// The timer of a thread is made by calls of the kernel's that no library wraps.
#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::kick;

/// How long a vCPU keeps its processor. An interruption costs some microseconds.
const TURN: Duration = Duration::from_millis(1);

/// Whether the vCPUs of a machine take turns with other threads.
#[derive(Default)]
pub(super) struct Turns {
    taken: AtomicBool,
    given: AtomicU64,
}

impl Turns {
    /// Begins or ends them. Seen by a vCPU when it next leaves the guest.
    pub(super) fn take(&self, taken: bool) {
        self.taken.store(taken, Ordering::SeqCst);
    }

    /// How many turns ended in a processor being offered to others.
    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    fn are_taken(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }
}

/// The turns of the calling vCPU thread.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    timer: OnceCell<Option<Timer>>,
    /// Whether the timer is set.
    running: Cell<bool>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(turns: &'a Turns) -> Self {
        Self {
            turns,
            timer: OnceCell::new(),
            running: Cell::new(false),
        }
    }

    /// Called before each entry into the guest: a turn begins if none is running and turns are taken.
    pub(super) fn begin(&self) {
        match (self.running.get(), self.turns.are_taken()) {
            (false, true) => {}
            (true, false) => return self.stop(),
            _ => return,
        }
        let timer = self.timer.get_or_init(|| {
            Timer::new()
                .inspect_err(|e| tracing::warn!("vCPUs take no turns: no timer: {e}"))
                .ok()
        });
        self.running.set(timer.is_some());
        self.set(TURN);
    }

    /// Called when the vCPU is to stand still: nothing interrupts it then.
    pub(super) fn stop(&self) {
        if self.running.replace(false) {
            self.set(Duration::ZERO);
        }
    }

    fn set(&self, period: Duration) {
        if let Some(Some(timer)) = self.timer.get() {
            timer.set(period);
        }
    }

    /// Called when a signal interrupted the guest: its turn is over, others run first.
    pub(super) fn end(&self) {
        if self.running.get() {
            std::thread::yield_now();
            self.turns.given.fetch_add(1, Ordering::Relaxed);
            self.set(TURN);
        }
    }
}

/// A timer that sends [`kick::signal`] to the thread that made it (timer_create(2)).
pub(super) struct Timer(libc::timer_t);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick::signal();
        // SAFETY: takes nothing and touches no memory.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call, which reads the one and writes the other.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Goes off after each `period` from now on; after zero never. Again and again, as the signal
    /// interrupts nothing when the thread is not in the guest just then.
    pub(super) fn set(&self, period: Duration) {
        let period = libc::timespec {
            tv_sec: period.as_secs() as libc::time_t,
            tv_nsec: period.subsec_nanos().into(),
        };
        let setting = libc::itimerspec {
            it_interval: period,
            it_value: period,
        };
        // SAFETY: the timer lives as long as `self`; the setting is valid for the call, which reads it.
        let set =
            unsafe { libc::timer_settime(self.0, 0, &raw const setting, std::ptr::null_mut()) };
        debug_assert_eq!(set, 0, "the timer exists and the time is one");
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is not used any more.
        unsafe { libc::timer_delete(self.0) };
    }
}
