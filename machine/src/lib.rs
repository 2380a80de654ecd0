//! A virtual machine on KVM, x86-64: built, booted, paused, saved, loaded, and moved by the engine of `migration`.

pub mod boot;
pub mod build;
pub mod clock;
pub mod config;
pub mod console;
pub mod cpuid;
mod debug;
pub mod devices;
mod disks;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod instance;
pub mod kvm;
mod machine;
pub mod memory;
mod moving;
pub mod opener;
pub mod power;
pub mod probe;
pub mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod vcpu;

pub use disks::DiskSource;
pub use error::MachineError;
pub use events::GuestEvents;
pub use instance::launch::{receive, run};
pub use kvm::slots::DirtyLog;
pub use machine::{DiskOverrides, Machine, NetOverrides};
pub use moving::NAMELESS;
