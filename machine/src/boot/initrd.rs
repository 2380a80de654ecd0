//! Places the initrd as high as the kernel and the RAM allow.

use std::path::Path;

use migration::{GuestRam, PAGE_SIZE};

use super::error::BootError;
use super::image::Image;
use super::layout;

/// An initrd in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Initrd {
    /// Guest-physical address, page-aligned.
    pub(super) start: u64,
    /// Length in bytes.
    pub(super) len: u64,
}

/// Loads the initrd between `kernel_end` and the lower of `highest_end` and the end of low RAM.
pub(super) fn load(
    path: &Path,
    ram: &GuestRam,
    kernel_end: u64,
    highest_end: u64,
) -> Result<Initrd, BootError> {
    let image = Image::open(path)?;
    let len = image.len();
    if len == 0 {
        return Err(BootError::EmptyInitrd {
            file: image.name().to_owned(),
        });
    }
    let limit = highest_end.min(layout::low_ram_end(ram));
    let start = limit.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1));
    match start {
        // The boot protocol and start info carry its place in 32 bits: low RAM ends below 4 GiB.
        Some(start) if start >= kernel_end => {
            image.load("the initrd", 0, len, ram, start)?;
            Ok(Initrd { start, len })
        }
        _ => Err(BootError::InitrdDoesNotFit {
            file: image.name().to_owned(),
            size: len,
            kernel_end,
            limit,
        }),
    }
}
