//! Disk images: one thread-safe block trait, and the layers over it.
//!
//! [`BlockDevice`] is what a guest's disk, a copy job or a layer sees. [`raw::RawImage`] is the trait
//! over a plain file or a block special file, [`fault::FaultLayer`] makes any image fail on request,
//! and [`claim::Claim`] keeps every other process away from a writable image, without a gap while a
//! guest moves from one process to another.

#![deny(missing_docs)]

mod access;
pub mod buffer;
pub mod claim;
pub mod control_file;
pub mod device;
pub mod error;
pub mod fault;
pub mod hold;

mod ofd;
mod open;
mod place;
mod qemu_locks;
pub mod raw;
pub mod samples;
mod sys;

pub use access::Access;
pub use buffer::Buffer;
pub use claim::Claim;
pub use device::{BlockDevice, Extent, ExtentKind, Identity, SECTOR_SIZE, ZeroMode};
pub use error::{Error, Result};
pub use hold::Hold;
pub use raw::{Content, ImageKind, RawImage};
