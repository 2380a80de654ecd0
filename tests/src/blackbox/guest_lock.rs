//! One test at a time: guests of two tests beside each other would only measure each other.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::{skip, target};

static IN_PROCESS: Mutex<()> = Mutex::new(());

/// Held by the test that may run guests now, across all test processes of this build directory.
pub struct GuestLock {
    _process: File,
    _thread: MutexGuard<'static, ()>,
}

/// Waits until this test may run guests; `None`, with the reason printed, when the machine has no KVM.
///
/// # Panics
/// When the lock file beside the binary cannot be made.
pub fn guest_lock() -> Option<GuestLock> {
    if let Some(reason) = skip::lacks_kvm() {
        println!("skipped: {reason}");
        return None;
    }
    let thread = IN_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let path = target::target_dir()
        .expect("target directory")
        .join("blackbox.lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    flock(&file, FlockOperation::LockExclusive).expect("lock of the black-box tests");
    Some(GuestLock {
        _process: file,
        _thread: thread,
    })
}
