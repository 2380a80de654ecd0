//! RAM as one mapping of a file, laid out around the hole below 4 GiB.

// Advising the kernel about a mapping needs its raw address.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::Arc;

use migration::GuestRam;
use migration::vm::RamRegion;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::file::RamFile;

/// Where the hole for devices begins.
pub const HOLE_START: u64 = 3 << 30;
/// Where RAM goes on above the hole.
pub const HIGH_START: u64 = 4 << 30;

/// Pages that back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageBacking {
    /// 4 KiB pages.
    Small,
    /// Transparent huge pages where the kernel has one: of a tmpfs of this VM's own (which needs the
    /// right to mount), else as the host's `shmem_enabled` says.
    #[default]
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
    #[error("cannot create a memory file of {0} bytes")]
    Create(u64, #[source] io::Error),
    /// No thread to make memory present.
    #[error("cannot start the thread that reserves memory")]
    Thread(#[source] io::Error),
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

/// First address above all RAM of `size` bytes.
pub fn end(size: u64) -> u64 {
    layout(size)
        .iter()
        .map(|region| region.gpa.saturating_add(region.len))
        .max()
        .unwrap_or(0)
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

/// Makes `size` bytes of guest RAM of `file`; no page is touched, and small ones will come.
///
/// # Errors
/// When the host cannot hold it, or the kernel refuses.
pub fn allocate(file: RamFile, size: u64) -> Result<GuestRam, MemoryError> {
    check_size(size)?;
    let file = file.sized(size).map_err(|e| MemoryError::Create(size, e))?;
    on_file(&file, size)
}

/// Has pages of `ram` that are touched from now on be of this kind, where the kernel has them.
pub fn back_by(ram: &GuestRam, pages: PageBacking) {
    if pages == PageBacking::Small {
        return;
    }
    for region in ram.iter() {
        if let Err(e) = advise(region.as_ptr(), region.len(), libc::MADV_HUGEPAGE) {
            tracing::debug!(error = %e, "small pages back the RAM");
        }
    }
}

/// Maps all `size` bytes of `file` as guest RAM.
pub(super) fn on_file(file: &Arc<File>, size: u64) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    let mut offset = 0;
    for RamRegion { gpa, len } in layout(size) {
        let failed = |e: io::Error| MemoryError::Map(len, e);
        let mapping = map(file, offset, len).map_err(failed)?;
        // Guest RAM in a core dump is neither wanted nor affordable.
        advise(mapping.as_ptr(), len, libc::MADV_DONTDUMP).map_err(failed)?;
        regions.push(GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or(MemoryError::Layout)?);
        offset += len;
    }
    GuestRam::from_regions(regions).map_err(|_| MemoryError::Layout)
}

/// Maps `len` bytes of `file`, aligned so that huge pages can back it wherever that is possible.
fn map(file: &Arc<File>, offset: u64, len: u64) -> io::Result<MmapRegion<AtomicBitmap>> {
    let any = || {
        let bitmap = AtomicBitmap::new(len as usize, PAGE);
        MmapRegionBuilder::new_with_bitmap(len as usize, bitmap)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| match e {
                MmapRegionError::Mmap(e) => e,
                e => io::Error::other(e),
            })
    };
    let mapping = any()?;
    let excess = mapping.as_ptr() as usize % HUGE_PAGE;
    if excess == 0 || len < HUGE_PAGE as u64 {
        return Ok(mapping);
    }
    // The kernel maps downwards from the end of a gap: with the last bytes taken, the same mapping
    // ends, and so begins, that much lower.
    let end = mapping.as_ptr() as usize + len as usize;
    drop(mapping);
    let _spacer = Spacer::new(end - excess, excess);
    any()
}

/// Address space that is kept from being used.
struct Spacer(Option<(*mut c_void, usize)>);

impl Spacer {
    /// Nothing is kept when something lies there already: the mapping is then merely not aligned.
    fn new(at: usize, len: usize) -> Self {
        let at = std::ptr::with_exposed_provenance_mut::<c_void>(at);
        // SAFETY: without access rights, and never in place of an existing mapping.
        let made = unsafe {
            libc::mmap(
                at,
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        Self((made != libc::MAP_FAILED).then_some((made, len)))
    }
}

impl Drop for Spacer {
    fn drop(&mut self) {
        if let Some((at, len)) = self.0 {
            // SAFETY: made by `new` with this length, and known to nobody else.
            unsafe { libc::munmap(at, len) };
        }
    }
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

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
    use migration::raw::{Ram, RamSlice, Span};

    use super::super::testing::huge_bytes_at;
    use super::*;

    const SIZE: u64 = 16 << 20;

    /// The second and the third stripe of RAM.
    fn two_stripes(ram: &Ram) -> RamSlice<'_> {
        ram.slice(Span {
            region: 0,
            page: 512,
            pages: 1024,
        })
    }

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
    fn ram_is_aligned_for_huge_pages() {
        for size in [16_u64 << 20, (64 << 20) + migration::PAGE_SIZE] {
            let ram = allocate(RamFile::memfd(), size).unwrap();
            for region in ram.iter() {
                assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0, "{size} bytes");
            }
        }
    }

    #[test]
    fn ram_becomes_huge_and_keeps_what_it_holds() {
        let file = RamFile::memfd();
        let how = file.huge_pages();
        let ram = allocate(file, SIZE).unwrap();
        let indexed = Ram::new(&ram, &layout(SIZE)).unwrap();
        let stripes = two_stripes(&indexed);
        stripes.part(5000, 3).copy_from(b"abc");
        if let Err(refused) = stripes.make_huge(how) {
            println!("skipped: no huge pages for shared memory: {refused}");
            return;
        }
        let mut held = [1; 5];
        stripes.part(4999, 5).copy_to(&mut held);
        assert_eq!(&held, b"\0abc\0");
        let start = ram.iter().next().unwrap().as_ptr() as usize;
        assert_eq!(huge_bytes_at(start + (2 << 20)), 4 << 20);
    }

    #[test]
    fn ram_on_a_tmpfs_of_its_own_is_huge_where_that_is_advised() {
        let file = match RamFile::on_own_tmpfs() {
            Ok(file) => file,
            Err(why) => return println!("skipped: no tmpfs of one's own: {why}"),
        };
        let how = file.huge_pages();
        let ram = allocate(file, SIZE).unwrap();
        let indexed = Ram::new(&ram, &layout(SIZE)).unwrap();
        let stripes = two_stripes(&indexed);
        stripes.make_huge(how).unwrap();
        let start = ram.iter().next().unwrap().as_ptr() as usize;
        assert_eq!(huge_bytes_at(start + (2 << 20)), 4 << 20);
        assert!(stripes.is_zero());
        // Elsewhere the pages are small as before.
        let beside = indexed.slice(Span {
            region: 0,
            page: 1536,
            pages: 512,
        });
        beside.populate().unwrap();
        assert_eq!(huge_bytes_at(start + (6 << 20)), 0);
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let error = allocate(RamFile::memfd(), 1 << 50).unwrap_err();
        assert!(matches!(error, MemoryError::TooLarge { .. }), "{error}");
        assert!(matches!(
            allocate(RamFile::memfd(), 4097).unwrap_err(),
            MemoryError::Size(_)
        ));
    }
}
