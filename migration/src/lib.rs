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
pub mod endpoint;
pub mod error;
pub mod id;
pub mod journal;
pub mod observation;
pub mod os;
mod outcome;
mod pages;
pub mod progress;
mod ram;
pub mod raw;
pub mod request;
mod resolution;
mod session;
pub mod source;
pub mod threads;
pub mod transport;
mod tripwires;
pub mod units;
pub mod vm;
pub mod wire;

pub use error::Error;
pub use id::{HostId, MigrationId};
pub use outcome::Outcome;
pub use ram::{GuestRam, PAGE_SIZE};
