//! Only a few tests run guests at a time: guests of many beside each other would only wait for each other.

use std::fs::File;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{skip, target};

/// Tests whose guests run beside each other. Most of a test's time is waiting: for a boot, a link, a deadline.
const BESIDE: usize = 3;

/// How often a test that waits looks for a place.
const LOOKS: Duration = Duration::from_millis(20);

/// Held by a test that may run guests now, across all test processes of this build directory.
pub struct GuestLock {
    _places: Vec<File>,
}

/// Waits until this test may run guests beside those of others; `None`, with the reason printed, when the machine has
/// no KVM.
///
/// # Panics
/// When a lock file beside the binary cannot be made.
pub fn guest_lock() -> Option<GuestLock> {
    has_kvm()?;
    loop {
        for number in 0..BESIDE {
            let place = place(number);
            if flock(&place, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Some(GuestLock {
                    _places: vec![place],
                });
            }
        }
        thread::sleep(LOOKS);
    }
}

/// Waits until no other test runs guests, for one that fills the machine itself or measures it; `None`, with the reason
/// printed, when the machine has no KVM.
///
/// # Panics
/// When a lock file beside the binary cannot be made.
pub fn machine_lock() -> Option<GuestLock> {
    has_kvm()?;
    // In this order, so that two who want all do not wait for each other.
    let all = (0..BESIDE).map(|number| {
        let place = place(number);
        flock(&place, FlockOperation::LockExclusive).expect("lock of the black-box tests");
        place
    });
    Some(GuestLock {
        _places: all.collect(),
    })
}

fn has_kvm() -> Option<()> {
    let Some(reason) = skip::lacks_kvm() else {
        return Some(());
    };
    println!("skipped: {reason}");
    None
}

/// The lock goes with the file.
fn place(number: usize) -> File {
    let path = target::target_dir()
        .expect("target directory")
        .join(format!("blackbox.{number}.lock"));
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}
