//! Images: what the bytes of a disk are kept in, in any format that a guest's disk may have.

mod any;
pub(crate) mod direct;
mod format;
mod look;
pub mod mark;
mod open;
mod place;
pub mod qcow2;
pub mod raw;
pub mod samples;
pub mod seal;
pub(crate) mod sys;
pub mod uncached;
pub(crate) mod unflushed;

pub use any::Image;
pub use format::Format;
pub use look::{Look, look};
