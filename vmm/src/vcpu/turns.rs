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
    /// Whether the timer was set and has not interrupted the guest yet.
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

    /// Forgets a turn during which the vCPU was stopped: its timer went off unseen.
    pub(super) fn reset(&self) {
        self.running.set(false);
    }

    /// Called before each entry into the guest: a turn begins if none is running.
    pub(super) fn begin(&self) {
        if self.running.get() || !self.turns.are_taken() {
            return;
        }
        let timer = self.timer.get_or_init(|| {
            Timer::new()
                .inspect_err(|e| tracing::warn!("vCPUs take no turns: no timer: {e}"))
                .ok()
        });
        if let Some(timer) = timer {
            timer.set(TURN);
            self.running.set(true);
        }
    }

    /// Called when a signal interrupted the guest: its turn is over, others run first.
    pub(super) fn end(&self) {
        if self.running.replace(false) {
            std::thread::yield_now();
            self.turns.given.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A timer that sends [`kick::signal`] to the thread that made it (timer_create(2)).
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> io::Result<Self> {
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

    /// Goes off once, after `after`.
    fn set(&self, after: Duration) {
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut setting: libc::itimerspec = unsafe { std::mem::zeroed() };
        setting.it_value.tv_sec = after.as_secs() as libc::time_t;
        setting.it_value.tv_nsec = after.subsec_nanos().into();
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
