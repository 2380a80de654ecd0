//! Guests that move with their disks, and disks that move below their guest: next to QEMU's mirror and
//! to a plain copy of the same images.

mod figures;
mod goals;
mod local;
mod measure;
mod mover;
mod nbdcopy;
mod on_demand;
mod plan;
mod report;
mod role;
mod turn;

pub use figures::{DiskMoveFigures, MoverFigures};
pub(super) use measure::measure;
pub use plan::DiskScenario;
pub(super) use plan::plan;
pub use role::MoverRole;
