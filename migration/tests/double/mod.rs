//! VMs without KVM: memory with software dirty marks, a thread that plays the guest, and a witness
//! who sees whether two of them ever run the same guest.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unused_imports, reason = "each test binary uses its part")]

pub mod busy;
mod destination;
pub mod disks;
mod guest;
mod memory;
pub mod network;
pub mod played_disks;
pub mod players;
mod refuse;
pub mod scene;
mod source;
mod wait;
mod witness;

pub use destination::{Destination, Flaw};
pub use guest::Guest;
pub use memory::{contents, layout, make_ram};
pub use refuse::Refuse;
pub use source::Source;
pub use wait::{ends_within, wait_until};
pub use witness::Witness;
