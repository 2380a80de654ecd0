//! A minimal VMM for KVM on x86-64 and the command line that runs and moves guests.

pub mod instance;
pub mod probe;
