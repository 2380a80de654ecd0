//! Ctrl-C: the benchmark ends what it started before it ends.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use super::error::BenchError;

/// Handlers get no argument of ours: the one thing that they may reach is a static.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C, a hang-up and a request to terminate are noted instead of ending the
/// process.
pub(super) fn watch() -> Result<(), BenchError> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, note)
            .map_err(|e| BenchError::Signal(signal, io::Error::from_raw_os_error(e.errno())))?;
    }
    Ok(())
}

/// Whether the benchmark is to end.
pub(super) fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ends the work in hand when the benchmark is to end.
pub(super) fn check() -> Result<(), BenchError> {
    if requested() {
        Err(BenchError::Interrupted)
    } else {
        Ok(())
    }
}
