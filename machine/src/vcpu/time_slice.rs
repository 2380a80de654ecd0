//! Time slices: on a host with fewer processors than threads that want one, a vCPU whose guest is moved yields
//! it after each millisecond.
//!
//! The scheduler takes a processor from a vCPU at its tick (4 ms at 250 Hz), and the threads that waited
//! for it meanwhile then catch up, for twice as long where there are two: gaps that the guest sees, and a
//! move that waits. Shorter time slices shorten both.

// The timer of a thread is made by calls of the kernel's that no library wraps.
#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::kick;

/// How long a vCPU keeps its processor before it yields. An interruption costs some microseconds.
const SLICE: Duration = Duration::from_millis(1);

/// Whether the vCPUs of a machine yield their processors to other threads after each time slice.
#[derive(Default)]
pub(super) struct TimeSlices {
    active: AtomicBool,
    yields: AtomicU64,
}

impl TimeSlices {
    /// Begins or ends the yielding. Seen by a vCPU when it next leaves the guest.
    pub(super) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::SeqCst);
    }

    /// How often a vCPU yielded its processor.
    pub(super) fn yields(&self) -> u64 {
        self.yields.load(Ordering::Relaxed)
    }

    fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }
}

/// The time slices of the calling vCPU thread.
pub(super) struct TimeSlice<'a> {
    slices: &'a TimeSlices,
    timer: OnceCell<Option<Timer>>,
    /// Whether the timer is set.
    running: Cell<bool>,
}

impl<'a> TimeSlice<'a> {
    pub(super) fn new(slices: &'a TimeSlices) -> Self {
        Self {
            slices,
            timer: OnceCell::new(),
            running: Cell::new(false),
        }
    }

    /// Called before each entry into the guest: a time slice begins if none is running and vCPUs yield.
    pub(super) fn begin(&self) {
        match (self.running.get(), self.slices.is_active()) {
            (false, true) => {}
            (true, false) => return self.stop(),
            _ => return,
        }
        let timer = self.timer.get_or_init(|| {
            Timer::new()
                .inspect_err(|e| tracing::warn!("vCPUs do not yield: no timer: {e}"))
                .ok()
        });
        self.running.set(timer.is_some());
        self.set(SLICE);
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

    /// Called when a signal interrupted the guest: its time slice is over, others run first.
    pub(super) fn end(&self) {
        if self.running.get() {
            std::thread::yield_now();
            self.slices.yields.fetch_add(1, Ordering::Relaxed);
            self.set(SLICE);
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
