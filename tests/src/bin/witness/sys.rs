//! System calls that the standard library does not offer.
#![allow(unsafe_code)] // libc

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

/// A clock of the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_REALTIME`, what `date` shows.
    Wall,
}

impl Clock {
    /// Nanoseconds that the clock shows.
    pub fn now(self) -> u64 {
        let id = match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::Wall => libc::CLOCK_REALTIME,
        };
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: the pointer is to a timespec, which the call fills when it succeeds; both clocks
        // exist everywhere, so it does.
        let time = unsafe {
            assert_eq!(libc::clock_gettime(id, time.as_mut_ptr()), 0);
            time.assume_init()
        };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

/// Sleeps until `CLOCK_MONOTONIC` shows `deadline` nanoseconds.
pub fn sleep_until(deadline: u64) {
    let deadline = timespec(Duration::from_nanos(deadline));
    loop {
        // SAFETY: reads one timespec; an absolute sleep writes no remainder.
        let error = unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const deadline,
                ptr::null_mut(),
            )
        };
        if error != libc::EINTR {
            return;
        }
    }
}

/// A timerfd on `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct TimerFd(i32);

impl TimerFd {
    /// Expires at `first` nanoseconds of the clock and at every `interval` after that.
    pub fn new(first: u64, interval: Duration) -> io::Result<Self> {
        let setting = libc::itimerspec {
            it_interval: timespec(interval),
            it_value: timespec(Duration::from_nanos(first)),
        };
        // SAFETY: no pointer is passed but that to `setting`, which lives through the call.
        let fd = unsafe {
            let fd = checked(libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_CLOEXEC,
            ))?;
            checked(libc::timerfd_settime(
                fd,
                libc::TFD_TIMER_ABSTIME,
                &raw const setting,
                ptr::null_mut(),
            ))?;
            fd
        };
        Ok(Self(fd))
    }

    /// Waits for an expiration; gives the number of those since the last call.
    pub fn wait(&self) -> io::Result<u64> {
        let mut expired = 0_u64;
        // SAFETY: eight bytes are read into a u64.
        let read = unsafe { libc::read(self.0, (&raw mut expired).cast(), size_of::<u64>()) };
        match read {
            8 => Ok(expired),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        unsafe { libc::close(self.0) };
    }
}

/// Keeps `SIGALRM` from this thread and those that it starts, so that one can wait for it.
pub fn block_alarms() {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let set = alarm_set();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Starts `ITIMER_REAL`: a `SIGALRM` at every `interval`.
pub fn start_alarms(interval: Duration) -> io::Result<()> {
    let interval = libc::timeval {
        tv_sec: interval.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(interval.subsec_micros()),
    };
    let setting = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: `setting` lives through the call.
    checked(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const setting, ptr::null_mut()) })
        .map(drop)
}

/// Waits for a `SIGALRM`; false if none came within `limit`.
pub fn wait_for_alarm(limit: Duration) -> bool {
    let limit = timespec(limit);
    // SAFETY: the set is initialised; no information about the signal is asked for.
    unsafe {
        let set = alarm_set();
        libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const limit) == libc::SIGALRM
    }
}

/// Binds the calling thread to one CPU.
pub fn bind_to_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is an empty one, and `CPU_SET` ignores CPUs beyond it.
    unsafe {
        let mut set: libc::cpu_set_t = MaybeUninit::zeroed().assume_init();
        libc::CPU_SET(cpu, &mut set);
        checked(libc::sched_setaffinity(
            0,
            size_of::<libc::cpu_set_t>(),
            &raw const set,
        ))
        .map(drop)
    }
}

/// # Safety
/// None is needed; unsafe because libc's functions are.
unsafe fn alarm_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset adds a signal that exists.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGALRM);
        set.assume_init()
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(duration.subsec_nanos()),
    }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
