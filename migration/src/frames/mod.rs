//! What goes over a data connection at its source, whatever volume it is of: how it is paced, sent and counted.

mod counters;
mod outlet;
mod trail;

pub(crate) use counters::Counters;
pub(crate) use outlet::{Outgoing, Outlet};
pub(crate) use trail::Trail;

/// Whether the destination's copy of a volume is still as it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Nothing was sent: holes and zeroes need not travel.
    First,
    /// The link was lost in the first pass, and this is what is left of it: some of that may have been sent, and more
    /// placed than is known.
    Rest,
    /// What was sent before is sent again.
    Again,
}
