//! What the thread of a queue waits for, and what it makes of being woken.

/// What the thread of a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// A kick.
    Kick,
    /// A kick, but not for long: some buffers are there.
    KickOrPatience,
    /// A kick or a packet.
    Packets,
    /// Either, for a driver whose available buffers are too few for the largest packet and was waited for.
    PacketsImpatiently,
    /// A kick, or that a source of packets may work again.
    Recovery,
}

/// What woke the thread of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// A kick or a packet.
    ByWork,
    /// As before, and the driver was waited for, in vain, to make more buffers available.
    Impatient,
}
