//! What the threads of this crate do, told to whoever confines them ([`Hook`]).

use migration::threads::Hook;

/// What a thread of a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU and the register accesses of its guest.
    Vcpu,
    /// Reads samples of a disk.
    Disk,
    /// Announces a guest, has memory ready for one.
    Helper,
    /// Carries the console to its log and viewers.
    Console,
    /// Looks after the guest's end, its boot under kvm_pvm, and the claims of its disks.
    Caretaker,
    /// Passes the exclusive open of block devices to a successor on this host.
    Holder,
    /// Coordinates a migration at the source.
    Migration,
    /// Waits for a guest, builds its machine, and answers for it afterwards.
    Incoming,
}

/// The threads of this crate.
pub static STARTED: Hook<ThreadKind> = Hook::new();

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(kind: ThreadKind) {
    STARTED.begin(kind);
}
