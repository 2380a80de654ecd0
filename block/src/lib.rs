//! Disk images: one thread-safe block trait, and the layers over it.
//!
//! [`BlockDevice`] is what a copy job or a layer sees, one call for a request. [`Backend`] is what a
//! guest's disk sees: requests are submitted, and end in any order; [`Pool`] makes one of any
//! [`BlockDevice`]. [`raw::RawImage`] is the trait over a plain file or a block special file; a [`Stack`] is an image
//! with layers over it, which track its changes ([`tracker`]), limit its rate ([`throttle`]), have it wait for room ([`room`]),
//! change a second image alike ([`mirror`]), fetch what is not here yet ([`on_demand`]), record it for a power cut
//! ([`recorder`]), or make it fail on request ([`fault`]);
//! [`copy::Copy`] copies a disk to another image while it is written;
//! and [`claim::Claim`] keeps every other process away from a writable image, without a gap while a
//! guest moves from one process to another.

#![deny(missing_docs)]

mod access;
pub mod arrivals;
pub mod buffer;
pub mod claim;
pub mod copy;
pub mod device;
pub mod error;
pub mod image;
pub mod layer;
mod requests;
pub mod stack;

pub use access::Access;
pub use buffer::Buffer;
pub use claim::{Claim, ExclusiveOpen, exclusive_open};
pub use device::{
    Arrived, BlockDevice, Discarded, Durability, Extent, ExtentKind, Identity, SECTOR_SIZE,
    ZeroMode,
};
pub use error::{Error, Result};
pub use image::raw::{Below, Content, ImageKind, RawImage, Reach};
pub use image::{raw, samples};
pub use layer::pass_on::Layer;
pub use layer::{
    backlog, control_file, fault, mirror, on_demand, recorder, room, sealed, throttle, tracker,
};
pub use requests::pool::Pool;
pub use requests::request::{Action, Backend, Job, Submitter};
pub use requests::uring::{RingDisk, Uring};
pub use requests::{pool, request, uring};
pub use stack::Stack;
