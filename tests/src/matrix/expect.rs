//! What must come of a fault.

/// One cell of the matrix.
#[derive(Debug, Clone, Copy)]
pub enum Cell {
    /// The fault cannot happen in this phase, for this reason.
    Not(&'static str),
    /// It is executed and must end so.
    Run(End),
}

/// How a migration ends.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Exit code of `vmm migrate`.
    pub code: i32,
    /// Status in its report; `None` when its VM was killed and cannot report.
    pub status: Option<&'static str>,
    /// Identifiers that its error names, outermost first; others may stand between them.
    pub chain: &'static [&'static str],
    /// What becomes of `vmm receive`.
    pub receiver: Receiver,
    /// Where the guest is then.
    pub guest: Whereabouts,
}

/// What becomes of `vmm receive`.
#[derive(Debug, Clone, Copy)]
pub enum Receiver {
    /// It holds the guest.
    Holds,
    /// It goes on waiting, after a failure with this chain.
    Waits(&'static [&'static str]),
    /// It ends with this code and an error with this chain.
    Ends(i32, &'static [&'static str]),
    /// It was killed.
    Killed,
}

/// Where the guest is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It runs where it ran.
    Source,
    /// It runs at the destination.
    Destination,
    /// It is paused at the destination.
    PausedThere,
    /// Only the destination can tell, once it is reached: it never ran there.
    UnknownNever,
    /// Only the destination can tell, once it is reached: it runs there.
    UnknownRan,
    /// Only the destination can tell, once it is reached: it ran there, and its process was killed.
    UnknownRanAndKilled,
    /// It has ended, or was killed with its process.
    Nowhere,
}

impl Cell {
    /// The migration completes and the guest is at `guest`.
    pub const fn completes(guest: Whereabouts) -> Self {
        Self::Run(End {
            code: 0,
            status: Some("completed"),
            chain: &[],
            receiver: Receiver::Holds,
            guest,
        })
    }

    /// The migration fails and the guest stays.
    pub const fn stays(chain: &'static [&'static str], receiver: &'static [&'static str]) -> Self {
        Self::fails(chain, Receiver::Ends(1, receiver), Whereabouts::Source)
    }

    /// The migration fails before its machine is built, or when it was on offer: the guest stays, and the
    /// destination goes on waiting.
    pub const fn refused(
        chain: &'static [&'static str],
        receiver: &'static [&'static str],
    ) -> Self {
        Self::fails(chain, Receiver::Waits(receiver), Whereabouts::Source)
    }

    /// The migration fails.
    pub const fn fails(
        chain: &'static [&'static str],
        receiver: Receiver,
        guest: Whereabouts,
    ) -> Self {
        Self::Run(End {
            code: 1,
            status: Some("failed"),
            chain,
            receiver,
            guest,
        })
    }

    /// The answer to the commit is lost.
    pub const fn unknown(
        chain: &'static [&'static str],
        receiver: Receiver,
        guest: Whereabouts,
    ) -> Self {
        Self::Run(End {
            code: 3,
            status: Some("handover-unknown"),
            chain,
            receiver,
            guest,
        })
    }

    /// The source's process is killed before its commit, and its guest with it.
    pub const fn source_killed(receiver: Receiver) -> Self {
        Self::Run(End {
            code: 1,
            status: None,
            chain: &["vm.unreachable"],
            receiver,
            guest: Whereabouts::Nowhere,
        })
    }

    /// The source's process is killed after its commit was sent: nobody there can tell.
    pub const fn source_killed_late(receiver: Receiver, guest: Whereabouts) -> Self {
        Self::Run(End {
            code: 3,
            status: None,
            chain: &["migration.outcome-unknown", "vm.unreachable"],
            receiver,
            guest,
        })
    }
}
