//! QEMU, the peer that this engine is compared with: where it is found, and how it is started.

mod migrate;
mod program;
mod qmp;
mod variant;

pub(super) use migrate::run;
pub use program::QemuPath;
pub(super) use program::{Found, Qemu};
pub(super) use variant::Variant;
