//! The migration engine: moves a running VM between hosts, knowing no VMM.
//!
//! # What always holds
//! At most one side runs the guest, and at every moment some side can. Before *commit* any failure
//! leaves the guest running at the source as if nothing had been tried; after *commit* only the
//! destination may run it. When the answer to *commit* is lost, the source keeps the guest paused
//! (`handover-unknown`) until the destination has said, exactly once, whether it ran.

#![deny(missing_docs)]

pub mod address;
pub mod bandwidth;
pub mod control;
pub mod convergence;
pub mod destination;
pub mod error;
pub mod id;
pub mod journal;
pub mod observation;
pub mod os;
mod outcome;
mod pages;
pub mod progress;
pub mod raw;
mod session;
pub mod source;
pub mod threads;
pub mod transport;
mod tripwires;
pub mod vm;
pub mod wire;

pub use error::Error;
pub use id::{HostId, MigrationId};
pub use outcome::Outcome;

/// Guest RAM: memfd-backed mappings whose writes by the VMM's own devices are tracked per page.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// Bytes in a guest page, the unit of dirty tracking.
pub const PAGE_SIZE: u64 = 4096;
