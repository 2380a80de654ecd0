//! `disk-iops`: random requests of 4 KiB that a guest makes of a disk, next to QEMU on the same file.

mod cell;
mod figures;
mod measure;

pub use cell::{Cell, DiskOp};
pub use figures::{CellFigures, DiskContenderFigures, DiskIopsFigures, DiskRole};
pub(super) use measure::{NEEDED_SPACE, measure, needed_memory};
