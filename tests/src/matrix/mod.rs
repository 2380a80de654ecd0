//! The fault matrix: every fault in every phase of a migration, through the real binary.
//!
//! A [`fault::Fault`] says what is done to a migration that stands in a [`Phase`], and what must come
//! of it; a [`scene::Scene`] brings a migration there; [`verdict`] checks both sides, the guest and
//! what is left; a [`board::Board`] shows it all at the end.

pub mod board;
pub mod expect;
pub mod fault;
pub mod phase;
pub mod run;
pub mod scene;
pub mod standing;
pub mod verdict;

pub use expect::{Cell, End, Receiver, Whereabouts};
pub use fault::Fault;
pub use phase::Phase;
pub use scene::Scene;
