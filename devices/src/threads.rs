//! What the threads of this crate do, told to whoever confines them.
//!
//! A thread says its role first of all. Devices know nothing of confinement; the process that they run
//! in may give each role no more rights than it needs.

use std::sync::OnceLock;

/// What a thread of a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves a queue of a disk, or flushes it.
    Disk,
    /// Serves a queue of a network interface.
    Net,
    /// Serves a queue of a device without a file behind it.
    Queue,
    /// Keeps time, or carries output on, for a device.
    Helper,
}

static HOOK: OnceLock<fn(Role)> = OnceLock::new();

/// Has `hook` run first in every thread that this crate starts from now on, in that thread. Only the
/// first call in a process counts.
pub fn on_start(hook: fn(Role)) {
    let _ = HOOK.set(hook);
}

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(role: Role) {
    if let Some(hook) = HOOK.get() {
        hook(role);
    }
}
