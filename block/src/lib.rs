//! Disk images: one thread-safe block trait, and the layers over it.
//!
//! [`BlockDevice`] is what a guest's disk, a copy job or a layer sees. [`raw::RawImage`] is the trait
//! over a plain file or a block special file, [`fault::FaultLayer`] makes any image fail on request,
//! and [`claim::Claim`] keeps every other process away from a writable image, without a gap while a
//! guest moves from one process to another.

#![deny(missing_docs)]

pub mod buffer;
pub mod claim;
pub mod control_file;
pub mod device;
pub mod error;
pub mod fault;
mod ofd;
pub mod raw;
mod sys;

pub use buffer::Buffer;
pub use claim::Claim;
pub use device::{BlockDevice, Extent, ExtentKind, Identity, ZeroMode};
pub use error::{Error, Result};
pub use raw::{Access, Content, RawImage};

/// Bytes in a sector, the unit of a guest's addresses on a disk.
pub const SECTOR_SIZE: u64 = 512;
