//! A minimal VMM for KVM on x86-64 and the command line that runs and moves guests.

pub mod api;
pub mod cli;
pub mod config;
pub mod console;
mod demo;
pub mod instance;
pub mod logging;
pub mod rotating_file;
pub mod runtime_dir;
pub mod units;
