//! What the threads of this crate do, told to whoever confines them.
//!
//! A thread says its kind first of all. Devices know nothing of confinement; the process that they run
//! in may give each kind no more rights than it needs.

use migration::threads::Hook;

/// What a thread of a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Serves a queue of a disk, carries its requests out, or flushes it.
    Disk,
    /// Uses the ring of a disk: hands requests to the kernel, and ends them.
    Ring,
    /// Serves a queue of a network interface.
    Net,
    /// Serves a queue of a device without a file behind it.
    Queue,
    /// Keeps time, or carries output on, for a device.
    Helper,
}

/// The threads of this crate.
pub static STARTED: Hook<ThreadKind> = Hook::new();

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(kind: ThreadKind) {
    STARTED.begin(kind);
}
