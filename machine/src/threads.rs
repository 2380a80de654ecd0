//! What the threads of this crate do, told to whoever confines them ([`Hook`]).

use migration::threads::Hook;

/// What a thread of a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU and the register accesses of its guest.
    Vcpu,
    /// Reads samples of a disk, writes what a mirror is asked to, or fetches what a disk lacks.
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
    /// Moves a disk to another image on this host.
    DiskMove,
    /// Records how far the client of a disk has come that is served.
    Serving,
    /// Fetches from another host what a disk lacks, and says when it is whole.
    Pull,
    /// Waits for a guest, builds its machine, and answers for it afterwards.
    Incoming,
}

/// The threads of this crate.
pub static STARTED: Hook<ThreadKind> = Hook::new();

/// Says what the calling thread does for the rest of its life.
pub(crate) fn begin(kind: ThreadKind) {
    STARTED.begin(kind);
}
