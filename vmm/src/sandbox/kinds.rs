//! Kinds of threads, and what each may do.

use super::call::Group;
use super::calls::{
    ACCEPT, API, BUILD, CANCEL, CLAIMS, CONNECT, DIRTY_LOG, DISK, EVENTS, FILES, GUEST_RAM,
    MACHINE_STATE, MAKE_RING, OPEN_TAP, PACE, PAGES, REOPEN, RING, RUN_VCPU, SPAWN, START, TAP,
    TERMINAL, THREAD, TIME_SLICE, TRANSFER,
};

/// A kind of thread in the process of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs a vCPU and the register accesses of its guest.
    Vcpu,
    /// Serves a queue of a disk, carries its requests out, or flushes it.
    Disk,
    /// Uses the ring of a disk, which it has made before it is kept to this.
    Ring,
    /// Serves a queue of a network interface.
    Net,
    /// Serves a queue of the console or the entropy device.
    Queue,
    /// Keeps time or gathers output for a device, announces a guest, has memory ready for one.
    Helper,
    /// Carries the console to its log and viewers.
    Console,
    /// Hands on what is typed in the foreground.
    Keyboard,
    /// Looks after the guest's end, its boot under kvm_pvm, and the claims of its disks.
    Caretaker,
    /// Passes the exclusive open of block devices to a successor on this host.
    Holder,
    /// Serves the control socket.
    Control,
    /// Coordinates a migration at the source.
    Migration,
    /// Moves a disk to another image on this host.
    DiskMove,
    /// Waits for a guest, builds its machine, and answers for it afterwards.
    Incoming,
    /// Takes connections of a migration in.
    Reception,
    /// Carries the control connection of a migration.
    Link,
    /// Carries a data connection of a migration.
    Stream,
    /// Reads what a destination says on a data connection.
    Reader,
    /// Hashes guest memory.
    Hash,
    /// Has the disks of a guest flushed that is being moved.
    Flush,
    /// Serves a disk whose guest is elsewhere: all threads of the process that does it.
    Serving,
    /// Asks another host for what a disk lacks, writes it, and says when that is all.
    Pull,
    /// The main thread, once the VM is up.
    Main,
    /// The main thread before that; what it allows bounds every other.
    Process,
}

impl Kind {
    /// All kinds.
    pub(super) const ALL: [Self; 24] = [
        Self::Vcpu,
        Self::Disk,
        Self::Ring,
        Self::Net,
        Self::Queue,
        Self::Helper,
        Self::Console,
        Self::Keyboard,
        Self::Caretaker,
        Self::Holder,
        Self::Control,
        Self::Migration,
        Self::DiskMove,
        Self::Incoming,
        Self::Reception,
        Self::Link,
        Self::Stream,
        Self::Reader,
        Self::Hash,
        Self::Flush,
        Self::Serving,
        Self::Pull,
        Self::Main,
        Self::Process,
    ];

    /// How messages and the documentation name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Disk => "disk",
            Self::Ring => "ring",
            Self::Net => "net",
            Self::Queue => "queue",
            Self::Helper => "helper",
            Self::Console => "console",
            Self::Keyboard => "keyboard",
            Self::Caretaker => "caretaker",
            Self::Holder => "holder",
            Self::Control => "control",
            Self::Migration => "migration",
            Self::DiskMove => "disk-move",
            Self::Incoming => "incoming",
            Self::Reception => "reception",
            Self::Link => "link",
            Self::Stream => "stream",
            Self::Reader => "reader",
            Self::Hash => "hash",
            Self::Flush => "flush",
            Self::Serving => "serving",
            Self::Pull => "pull",
            Self::Main => "main",
            Self::Process => "process",
        }
    }

    /// What it does itself, beside what every thread does.
    pub(super) fn own(self) -> &'static [&'static Group] {
        match self {
            Self::Vcpu => &[&RUN_VCPU, &TIME_SLICE, &EVENTS, &TAP],
            Self::Disk => &[&DISK, &EVENTS],
            Self::Ring => &[&RING, &EVENTS],
            Self::Net => &[&EVENTS, &TAP],
            Self::Queue | Self::Helper | Self::Hash => &[&EVENTS],
            Self::Console | Self::Holder => &[&EVENTS, &ACCEPT, &TRANSFER],
            Self::Keyboard => &[&EVENTS, &TERMINAL],
            Self::Caretaker => &[&EVENTS, &MACHINE_STATE, &CLAIMS, &CANCEL, &TAP, &SPAWN],
            Self::Control => &[&EVENTS, &API, &ACCEPT, &TRANSFER, &SPAWN, &FILES, &REOPEN],
            Self::Migration => &[
                &EVENTS,
                &SPAWN,
                &FILES,
                &CLAIMS,
                &CONNECT,
                &TRANSFER,
                &MACHINE_STATE,
                &DIRTY_LOG,
                &TAP,
            ],
            Self::DiskMove => &[&EVENTS, &SPAWN, &FILES, &CLAIMS, &DISK],
            Self::Incoming => &[
                &EVENTS,
                &SPAWN,
                &FILES,
                &CLAIMS,
                &ACCEPT,
                &TRANSFER,
                &MACHINE_STATE,
                &BUILD,
                &MAKE_RING,
            ],
            Self::Reception => &[&EVENTS, &SPAWN, &FILES, &ACCEPT, &TRANSFER],
            Self::Link | Self::Reader => &[&EVENTS, &TRANSFER],
            // Disks that travel are read and written as pages are.
            Self::Stream => &[
                &EVENTS, &TRANSFER, &PAGES, &PACE, &DIRTY_LOG, &GUEST_RAM, &DISK,
            ],
            Self::Flush => &[&EVENTS, &SPAWN, &CANCEL],
            Self::Serving => &[&EVENTS, &SPAWN, &FILES, &CLAIMS, &ACCEPT, &TRANSFER, &DISK],
            Self::Pull => &[&EVENTS, &CONNECT, &TRANSFER, &DISK, &CLAIMS],
            Self::Main => &[&EVENTS, &FILES, &TERMINAL, &CLAIMS],
            Self::Process => &[&EVENTS, &START, &OPEN_TAP, &MAKE_RING],
        }
    }

    /// Kinds of threads that it starts: a thread can never do more than the one that started it.
    pub(super) fn starts(self) -> &'static [Self] {
        match self {
            Self::Control => &[Self::Migration, Self::DiskMove, Self::Disk, Self::Helper],
            // Whoever stops the machine flushes its disks.
            Self::Caretaker | Self::Flush | Self::DiskMove => &[Self::Disk],
            Self::Migration => &[
                Self::Link,
                Self::Stream,
                Self::Reader,
                Self::Hash,
                Self::Flush,
                Self::Disk,
                Self::Helper,
                Self::Caretaker,
            ],
            Self::Incoming => &[
                Self::Vcpu,
                Self::Disk,
                Self::Ring,
                Self::Net,
                Self::Queue,
                Self::Helper,
                Self::Caretaker,
                Self::Holder,
                Self::Reception,
                Self::Link,
                Self::Stream,
                Self::Hash,
                Self::Pull,
            ],
            Self::Process => &[
                Self::Vcpu,
                Self::Disk,
                Self::Ring,
                Self::Net,
                Self::Queue,
                Self::Helper,
                Self::Console,
                Self::Keyboard,
                Self::Caretaker,
                Self::Holder,
                Self::Control,
                Self::Incoming,
                Self::Pull,
                Self::Main,
            ],
            Self::Vcpu
            | Self::Disk
            | Self::Ring
            | Self::Net
            | Self::Queue
            | Self::Helper
            | Self::Console
            | Self::Keyboard
            | Self::Holder
            | Self::Reception
            | Self::Link
            | Self::Stream
            | Self::Reader
            | Self::Hash
            | Self::Serving
            | Self::Pull
            | Self::Main => &[],
        }
    }

    /// Whether it may start threads at all.
    pub(super) fn may_start_threads(self) -> bool {
        self.groups().iter().any(|group| group.name == SPAWN.name)
    }

    /// Everything that its filter allows: its own, and that of the threads it starts.
    pub(super) fn groups(self) -> Vec<&'static Group> {
        let mut groups: Vec<&'static Group> = Vec::new();
        let mut kinds = vec![self];
        let mut at = 0;
        while let Some(&kind) = kinds.get(at) {
            at += 1;
            for &started in kind.starts() {
                if !kinds.contains(&started) {
                    kinds.push(started);
                }
            }
        }
        // vCPUs come first in this enum, so that KVM_RUN is found first.
        kinds.sort_unstable();
        let all = kinds.iter().flat_map(|kind| kind.own()).copied();
        for group in all.chain([&THREAD]) {
            if !groups.iter().any(|known| known.name == group.name) {
                groups.push(group);
            }
        }
        groups
    }
}
