//! A minimal VMM for KVM on x86-64 and the command line that runs and moves guests.

pub mod api;
pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod cpuid;
mod demo;
#[doc(hidden)]
pub mod fuzzing;
pub mod instance;
pub mod kvm;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod rotating_file;
pub mod runtime_dir;
pub mod sandbox;
pub mod snapshot;
mod state_dir;
pub mod units;
pub mod vcpu;
