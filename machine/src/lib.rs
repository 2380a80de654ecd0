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
pub mod serving;
pub mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod vcpu;

pub use disks::overlay_target::OverlayTargets;
pub use disks::settling::{remove_left_overlays, settle};
pub use disks::{DiskSource, in_part as disk_in_part, target as disk_target};
pub use error::MachineError;
pub use events::GuestEvents;
pub use instance::launch::{receive, run};
pub use kvm::slots::DirtyLog;
pub use machine::{Machine, NetOverrides};
pub use moving::NAMELESS;
