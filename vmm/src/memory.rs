//! Guest RAM: one memfd, mapped shared, laid out around the hole below 4 GiB.

// Advising the kernel about a mapping needs its raw address.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use migration::GuestRam;
use migration::vm::RamRegion;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

/// Where the hole for devices begins.
pub const HOLE_START: u64 = 3 << 30;
/// Where RAM goes on above the hole.
pub const HIGH_START: u64 = 4 << 30;

/// Pages that back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageBacking {
    /// 4 KiB pages.
    #[default]
    Small,
    /// Transparent huge pages where the kernel has one (needs `shmem_enabled` `advise` or `always`).
    Thp,
}

impl std::str::FromStr for PageBacking {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "4k" => Ok(Self::Small),
            "thp" => Ok(Self::Thp),
            _ => Err(format!(
                "{text:?} is not a kind of pages: 4k and thp are supported"
            )),
        }
    }
}

/// Why guest RAM cannot be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than the host has.
    #[error("{wanted} MiB of guest memory is more than the {have} MiB that this host has")]
    TooLarge {
        /// MiB asked for.
        wanted: u64,
        /// MiB of the host.
        have: u64,
    },
    /// Not a whole number of pages.
    #[error("guest memory of {0} bytes is not a multiple of 4 KiB or is under 1 MiB")]
    Size(u64),
    /// A layout that this VMM would not have made.
    #[error("the RAM layout is not one that this version makes")]
    Layout,
    /// The file could not be made.
    #[error("cannot create a memfd of {0} bytes")]
    Create(u64, #[source] io::Error),
    /// The file could not be mapped.
    #[error("cannot map {0} bytes of guest memory")]
    Map(u64, #[source] io::Error),
}

/// Layout of `size` bytes of RAM.
pub fn layout(size: u64) -> Vec<RamRegion> {
    let mut regions = vec![RamRegion {
        gpa: 0,
        len: size.min(HOLE_START),
    }];
    if size > HOLE_START {
        regions.push(RamRegion {
            gpa: HIGH_START,
            len: size - HOLE_START,
        });
    }
    regions
}

/// Checks that a host with `/proc/meminfo`'s memory can hold `size` bytes of guest RAM at all.
///
/// # Errors
/// When the size is no whole number of pages, or more than the host has.
pub fn check_size(size: u64) -> Result<(), MemoryError> {
    if !size.is_multiple_of(migration::PAGE_SIZE) || size < 1 << 20 {
        return Err(MemoryError::Size(size));
    }
    let total = rustix::system::sysinfo();
    let have = (total.totalram as u64).saturating_mul(u64::from(total.mem_unit));
    if size > have {
        return Err(MemoryError::TooLarge {
            wanted: size >> 20,
            have: have >> 20,
        });
    }
    Ok(())
}

/// Allocates `size` bytes of guest RAM; no page is touched.
///
/// # Errors
/// When the host cannot hold it, or the kernel refuses.
pub fn allocate(size: u64, pages: PageBacking) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    let fd = memfd_create("vmm-ram", MemfdFlags::CLOEXEC)
        .map_err(|e| MemoryError::Create(size, e.into()))?;
    ftruncate(&fd, size).map_err(|e| MemoryError::Create(size, e.into()))?;
    let file = std::sync::Arc::new(File::from(fd));
    let mut regions = Vec::new();
    let mut offset = 0;
    for RamRegion { gpa, len } in layout(size) {
        let failed = |e: io::Error| MemoryError::Map(len, e);
        let bitmap = AtomicBitmap::new(len as usize, PAGE);
        let mapping = MmapRegionBuilder::new_with_bitmap(len as usize, bitmap)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| match e {
                MmapRegionError::Mmap(e) => failed(e),
                e => failed(io::Error::other(e)),
            })?;
        // Guest RAM in a core dump is neither wanted nor affordable.
        advise(mapping.as_ptr(), len, libc::MADV_DONTDUMP).map_err(failed)?;
        if pages == PageBacking::Thp {
            advise(mapping.as_ptr(), len, libc::MADV_HUGEPAGE).map_err(failed)?;
        }
        regions.push(GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or(MemoryError::Layout)?);
        offset += len;
    }
    GuestRam::from_regions(regions).map_err(|_| MemoryError::Layout)
}

const PAGE: std::num::NonZeroUsize =
    std::num::NonZeroUsize::new(migration::PAGE_SIZE as usize).unwrap();

fn advise(start: *mut u8, len: u64, advice: i32) -> io::Result<()> {
    // SAFETY: the range is a mapping that was just made with this length; neither advice changes
    // its contents.
    if unsafe { libc::madvise(start.cast(), len as usize, advice) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(
            layout(1 << 30),
            [RamRegion {
                gpa: 0,
                len: 1 << 30
            }]
        );
        assert_eq!(
            layout(4 << 30),
            [
                RamRegion {
                    gpa: 0,
                    len: 3 << 30
                },
                RamRegion {
                    gpa: 4 << 30,
                    len: 1 << 30
                }
            ]
        );
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let error = allocate(1 << 50, PageBacking::Small).unwrap_err();
        assert!(matches!(error, MemoryError::TooLarge { .. }), "{error}");
        assert!(matches!(
            allocate(4097, PageBacking::Small).unwrap_err(),
            MemoryError::Size(_)
        ));
    }
}
