//! QEMU, the peer that this engine is compared with: where it is found, and how it is started.

mod command_line;
mod disk;
mod migrate;
mod mirror;
mod program;
mod qmp;
mod variant;

pub(super) use disk::{DiskVariant, start_on_disk};
pub(super) use migrate::run;
pub use program::QemuPath;
pub(super) use program::{Found, Qemu};
pub(super) use variant::Variant;
