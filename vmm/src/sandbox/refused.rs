//! What becomes of a system call that no list holds.
//!
//! The kernel sends SIGSYS to the thread that made it. The handler counts the call, says so once for
//! each number, and lets the call return `EPERM`: an error path that calls something which the tests
//! did not reach must not cost a guest its life, least of all in the middle of a migration. See
//! `docs/adr/0006-refused-system-calls.md`.

// A signal handler takes raw pointers and may call almost nothing.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::calls::HOSTILE;
use super::kinds::Kind;

/// Numbers that are counted one by one; what is above shares the last.
const NUMBERS: usize = 512;
/// Exit code of a process that a refused call ended: as if SIGSYS had.
const ENDED: i32 = 128 + libc::SIGSYS;

static COUNTS: [AtomicU32; NUMBERS] = [const { AtomicU32::new(0) }; NUMBERS];
static ENDS: AtomicBool = AtomicBool::new(false);
/// The call that was refused last: second, kind and number, see [`packed`]. Zero is none.
static LATEST: AtomicU64 = AtomicU64::new(0);
/// Seconds for which a refused call explains that something was denied.
const EXPLAINS: u64 = 10;

thread_local! {
    /// Has no destructor and is made at compile time, so that a signal handler may read it.
    static KIND: Cell<Kind> = const { Cell::new(Kind::Process) };
}

/// What a refused call does beside failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// It returns `EPERM`.
    Fails,
    /// It ends the process.
    EndsProcess,
}

/// Remembers what the calling thread is, for messages.
pub(super) fn this_thread_is(kind: Kind) {
    KIND.set(kind);
}

/// Number of calls that were refused so far.
pub(super) fn count() -> u64 {
    COUNTS
        .iter()
        .map(|count| u64::from(count.load(Ordering::Relaxed)))
        .sum()
}

/// What was refused a moment ago, if anything was, for whoever was denied something.
pub(super) fn latest() -> Option<String> {
    let latest = LATEST.load(Ordering::Relaxed);
    let (second, kind, number) = (latest >> 24, (latest >> 16) & 0xff, latest & 0xffff);
    if latest == 0 || seconds() > second + EXPLAINS {
        return None;
    }
    let kind = Kind::ALL.get(usize::try_from(kind).ok()?)?.name();
    let number = i32::try_from(number).ok()?;
    let name = name_of(number).unwrap_or("unknown");
    Some(format!(
        "the sandbox refused system call {number} ({name}) of a thread of kind {kind}"
    ))
}

fn packed(number: i32, kind: Kind) -> u64 {
    (seconds().max(1) << 24) | ((kind as u64) << 16) | u64::from(number.unsigned_abs() & 0xffff)
}

/// Seconds of a clock that a signal handler may read.
fn seconds() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel, or its code in this process, writes a timespec to `now`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0)
}

/// Has refused calls handled here, in all threads.
///
/// # Errors
/// What the kernel says about the signal.
pub(super) fn handle(consequence: Consequence) -> io::Result<()> {
    ENDS.store(consequence == Consequence::EndsProcess, Ordering::Relaxed);
    // SAFETY: all zeroes are a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = refused;
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls nothing that is not
    // allowed in a handler.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `siginfo_t` of SIGSYS on x86-64 (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct RefusedCall {
    signal: i32,
    errno: i32,
    code: i32,
    _padding: i32,
    address: u64,
    number: i32,
    architecture: u32,
}

/// `si_code` of a signal by a filter (`SYS_SECCOMP`).
const BY_FILTER: i32 = 1;

extern "C" fn refused(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a siginfo_t of SIGSYS, which is at least as long as `RefusedCall` and
    // laid out as it.
    let call = unsafe { &*info.cast::<RefusedCall>() };
    if call.code != BY_FILTER {
        return;
    }
    let at = usize::try_from(call.number).map_or(NUMBERS - 1, |number| number.min(NUMBERS - 1));
    let first = COUNTS[at].fetch_add(1, Ordering::Relaxed) == 0;
    LATEST.store(packed(call.number, KIND.get()), Ordering::Relaxed);
    let ends = ENDS.load(Ordering::Relaxed);
    if first || ends {
        tell(call.number, KIND.get());
    }
    if ends {
        // SAFETY: ends the process without running anything else of it.
        unsafe { libc::_exit(ENDED) };
    }
    // SAFETY: with SA_SIGINFO the third argument is a ucontext_t; its RAX becomes the call's result.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        context.uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM);
    }
}

/// Writes one line to standard error, which is the VM's log once it is detached; allocates nothing.
fn tell(number: i32, kind: Kind) {
    let mut line = Line {
        bytes: [0; 160],
        len: 0,
    };
    line.push(b"vmm: the sandbox refused system call ");
    line.push_number(number);
    if let Some(name) = name_of(number) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b" of a thread of kind ");
    line.push(kind.name().as_bytes());
    line.push(b"\n");
    // SAFETY: the bytes are initialised and live for the duration of the call.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
}

/// The name of a call that any list knows.
fn name_of(number: i32) -> Option<&'static str> {
    let number = libc::c_long::from(number);
    let listed = Kind::ALL.iter().flat_map(|kind| kind.own());
    listed
        .flat_map(|group| group.calls)
        .chain(super::calls::THREAD.calls)
        .chain(HOSTILE)
        .find(|call| call.number == number)
        .map(super::call::Call::name)
}

struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: i32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut left = number.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}
