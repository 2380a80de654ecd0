//! A minimal VMM for KVM on x86-64 and the command line that runs and moves guests.

pub mod cli;
mod demo;
#[doc(hidden)]
pub mod fuzzing;
pub mod logging;
pub mod sandbox;
