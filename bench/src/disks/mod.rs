//! Disks of the guests that are measured: where their images lie, what is in them, and how they are
//! made cold.

mod image;
mod images;
mod moving;

pub(super) use image::{DiskFormat, DiskImage};
pub(super) use images::ImageFolder;
pub(super) use moving::{MovingDisk, WriteLoad};
