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
mod blocks;
pub mod convergence;
pub mod destination;
pub mod disk_bytes;
pub mod disk_modes;
pub mod endpoint;
pub mod error;
mod frames;
pub mod id;
pub mod journal;
pub mod observation;
pub mod os;
mod outcome;
mod pages;
mod places;
pub mod progress;
pub mod pull;
mod ram;
pub mod raw;
pub mod request;
mod resolution;
mod session;
pub mod source;
pub mod source_loss;
pub mod steering;
mod streams;
pub mod threads;
pub mod transport;
mod tripwires;
mod undo;
pub mod units;
pub mod vm;
pub mod wire;

#[cfg(test)]
extern crate self as migration;

/// The VMs of the tests beside this crate.
#[cfg(test)]
#[path = "../tests/double/mod.rs"]
mod double;

pub use error::Error;
pub use id::{HostId, MigrationId, PullSecret};
pub use outcome::Outcome;
pub use ram::{GuestRam, PAGE_SIZE};
