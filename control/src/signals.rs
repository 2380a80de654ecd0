//! What signals do to this process.
//!
//! | signal | a VM's process | other commands |
//! |---|---|---|
//! | `TERM`, `INT` | stops the guest | end the command |
//! | `HUP` | stops the guest; detached: opens the logs again; ignored under `nohup` | ends the command |
//! | `USR1`, `USR2`, `ALRM`, `QUIT`, real-time signals and others that tell a VM nothing | a line in the log | as by default |
//! | `XFSZ` | a write beyond the limit of file sizes fails | as by default |
//! | first real-time signal | brings a vCPU out of its guest | as by default |
//!
//! Whoever starts a process may hand down signals that are blocked: it would be deaf to them for ever.

// The C library has no function for the two real-time signals that it keeps to itself, and a signal's
// action and mask are raw values everywhere.
#![allow(unsafe_code)]

use std::io;

/// Signals that end a process by default and mean nothing to a VM, without the real-time ones.
const MEANINGLESS: [i32; 10] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGQUIT,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
];
/// The kernel's first and last real-time signal (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<i32> = 32..=64;

/// What the kernel takes for an action (sigaction(2), "C library/kernel differences").
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Sets the action of a signal to one without a handler of its own.
fn set(signal: i32, handler: usize) -> io::Result<()> {
    let action = KernelAction {
        handler,
        ..KernelAction::default()
    };
    // SAFETY: the action is valid for the call, which reads it, and has no function that could be called.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            &raw const action,
            std::ptr::null_mut::<KernelAction>(),
            size_of::<u64>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Name of a signal that ends a VM.
pub fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        _ => "a signal",
    }
}

/// Whether whoever started this process had the signal ignored, as `nohup` does with `SIGHUP`.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = KernelAction::default();
    // SAFETY: the action is valid for the call, which writes it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::null::<KernelAction>(),
            &raw mut action,
            size_of::<u64>(),
        )
    };
    done == 0 && action.handler == libc::SIG_IGN
}

/// Blocks no signal in this thread and those that it starts; the first thing that a process does.
pub fn unblock_all() {
    // SAFETY: the set is made of integers, for which zero is a value; the calls read and write it alone.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Keeps signals that mean nothing to a VM from ending its process, from before its first thread on.
///
/// # Errors
/// When the kernel refuses.
pub fn outlive_meaningless() -> io::Result<()> {
    let all = MEANINGLESS.into_iter().chain(REAL_TIME);
    for signal in all.chain([libc::SIGXFSZ]) {
        set(signal, libc::SIG_IGN)?;
    }
    Ok(())
}

/// Ignores `signal` until it gets a handler.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore(signal: i32) -> io::Result<()> {
    set(signal, libc::SIG_IGN)
}

/// Signals that mean nothing to a VM and can be heard; the one that brings vCPUs out of the guest has its
/// own handler.
pub fn meaningless() -> impl Iterator<Item = i32> {
    let own = libc::SIGRTMIN() + 1;
    MEANINGLESS.into_iter().chain(own..=*REAL_TIME.end())
}

/// Ends this process by `signal`, as if it had not been heard.
pub fn end_by(signal: i32) -> ! {
    let _ = set(signal, libc::SIG_DFL);
    // SAFETY: takes no pointer; at worst it does nothing.
    unsafe {
        libc::raise(signal);
    }
    // Not reached unless the signal is blocked here; as shells count.
    std::process::exit(128 + signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known_as_such() {
        // One that no other test of this program is about.
        assert!(!is_ignored(libc::SIGURG));
        ignore(libc::SIGURG).unwrap();
        assert!(is_ignored(libc::SIGURG));
        set(libc::SIGURG, libc::SIG_DFL).unwrap();
        assert!(!is_ignored(libc::SIGURG));
    }

    #[test]
    fn what_stops_a_guest_is_not_meaningless() {
        let meaningless: Vec<i32> = meaningless().collect();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGSYS] {
            assert!(!meaningless.contains(&signal));
        }
        assert!(meaningless.contains(&libc::SIGUSR1) && meaningless.contains(&64));
    }
}
