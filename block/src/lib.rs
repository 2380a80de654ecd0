//! Disk images: one thread-safe block trait, and the layers over it.
//!
//! [`BlockDevice`] is what a copy job or a layer sees, one call for a request. [`Backend`] is what a
//! guest's disk sees: requests are submitted, and end in any order; [`Pool`] makes one of any
//! [`BlockDevice`]. [`raw::RawImage`] is the trait over a plain file or a block special file,
//! [`fault::FaultLayer`] makes any image fail on request,
//! and [`claim::Claim`] keeps every other process away from a writable image, without a gap while a
//! guest moves from one process to another.

#![deny(missing_docs)]

mod access;
pub mod buffer;
pub mod claim;
pub mod control_file;
pub mod device;
pub mod error;
pub mod exclusive_open;
pub mod fault;

mod ofd;
mod open;
mod order;
mod pace;
mod place;
pub mod pool;
mod qemu_locks;
pub mod raw;
pub mod request;
pub mod samples;
mod sys;

pub use access::Access;
pub use buffer::Buffer;
pub use claim::Claim;
pub use device::{
    Arrived, BlockDevice, Discarded, Durability, Extent, ExtentKind, Identity, SECTOR_SIZE,
    ZeroMode,
};
pub use error::{Error, Result};
pub use exclusive_open::ExclusiveOpen;
pub use pool::Pool;
pub use raw::{Content, ImageKind, RawImage};
pub use request::{Action, Backend, Job, Submitter};
