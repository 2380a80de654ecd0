//! The two sides of a move, as the engine sees the machine there.

pub(crate) mod destination;
mod forwarding;
mod rehearsal;
pub(crate) mod source;

pub use destination::NAMELESS;
