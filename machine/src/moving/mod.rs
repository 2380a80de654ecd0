//! The two sides of a move, as the engine sees the machine there; and moves of disks on one host.

mod arriving_disks;
pub(crate) mod destination;
pub(crate) mod disk_move;
mod forwarding;
mod rehearsal;
pub(crate) mod source;
mod volume;

pub use destination::NAMELESS;
