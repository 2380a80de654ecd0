//! A command on a kernel that lacks a system call.

// The filter that plays such a kernel is installed between fork and exec.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has `call` fail with `errno` in what `command` starts, and in all that this starts.
///
/// # Panics
/// When the number is none.
#[must_use]
pub fn without(call: libc::c_long, errno: i32, mut command: Command) -> Command {
    // Classic BPF (linux/bpf_common.h): load the number, compare it, refuse or allow.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(call).expect("number of a system call");
    let program = [
        op(LOAD, 0, 0, 0),
        op(EQUAL, 0, 1, number),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: both calls are made with arguments of the kinds that they take; the filter lives
        // until the second returns.
        let installed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const filter,
                ) == 0
        };
        if installed {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
    command
}
