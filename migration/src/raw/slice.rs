//! Guest RAM as page-indexed regions and bounds-checked slices of it.

use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::Error;
use crate::vm::{HugePages, RamRegion};
use crate::{GuestRam, PAGE_SIZE};

/// Pages in a stripe (2 MiB): the unit in which RAM is divided among the data streams.
pub const STRIPE_PAGES: u64 = 512;

/// A run of guest memory: address and length, checked against the RAM (or the buffer) that it borrows.
#[derive(Clone, Copy)]
pub struct RamSlice<'a> {
    ptr: *mut u8,
    len: usize,
    ram: PhantomData<&'a Ram>,
}

// SAFETY: the slice is only an address; every access goes through methods that tolerate concurrent
// writers, and the borrow of `Ram` keeps the mapping alive.
unsafe impl Send for RamSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for RamSlice<'_> {}

impl<'a> RamSlice<'a> {
    /// Memory of our own, as what is hashed and compared like a guest's.
    pub fn over(bytes: &'a mut [u8]) -> Self {
        Self {
            ptr: bytes.as_mut_ptr(),
            len: bytes.len(),
            ram: PhantomData,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The part from `offset` on, at most `len` bytes long.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> RamSlice<'a> {
        let offset = offset.min(self.len);
        RamSlice {
            // SAFETY: `offset` is at most the length, so the result is inside or one past the end.
            ptr: unsafe { self.ptr.add(offset) },
            len: len.min(self.len - offset),
            ram: PhantomData,
        }
    }

    /// Copies out as many bytes as both hold.
    pub fn copy_to(&self, out: &mut [u8]) {
        let len = self.len.min(out.len());
        // SAFETY: both are valid for `len` bytes; `out` is exclusive and not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, out.as_mut_ptr(), len) };
    }

    /// Copies in as many bytes as both hold.
    pub fn copy_from(&self, data: &[u8]) {
        let len = self.len.min(data.len());
        // SAFETY: both are valid for `len` bytes; `data` is not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.ptr, len) };
    }

    /// Fills with zeroes.
    pub fn zero(&self) {
        // SAFETY: valid for `len` bytes.
        unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) };
    }

    /// Whether all bytes are zero; stops at the first cache lines that are not.
    pub fn is_zero(&self) -> bool {
        const WORDS: usize = 32;
        let step = WORDS * 8;
        let mut offset = 0;
        while offset + step <= self.len {
            let mut seen = 0u64;
            for word in 0..WORDS {
                // SAFETY: `offset + step` is within the slice; the read needs no alignment.
                seen |= unsafe {
                    self.ptr
                        .add(offset + word * 8)
                        .cast::<u64>()
                        .read_unaligned()
                };
            }
            if seen != 0 {
                return false;
            }
            offset += step;
        }
        while offset < self.len {
            // SAFETY: `offset` is within the slice.
            if unsafe { self.ptr.add(offset).read() } != 0 {
                return false;
            }
            offset += 1;
        }
        true
    }

    /// Maps the pages writable now, so that no fault is taken when data lands in them.
    ///
    /// # Errors
    /// When the kernel cannot populate them: out of memory, or older than 5.14.
    pub fn populate(&self) -> std::io::Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Makes whole, aligned stripes present in huge pages: several times cheaper than as many small
    /// pages. What they hold stays.
    ///
    /// # Errors
    /// When the kernel cannot make them present. By collapse also when it has no huge page to give, is
    /// older than 6.1, or denies them altogether (`shmem_enabled` is `deny`), and when the mapping is not
    /// aligned: some may be huge then. By advice small ones take their place without an error.
    pub fn make_huge(&self, how: HugePages) -> std::io::Result<()> {
        match how {
            HugePages::ByAdvice => {
                self.advise(libc::MADV_HUGEPAGE)?;
                self.populate()
            }
            HugePages::ByCollapse => self.collapse(),
        }
    }

    fn collapse(&self) -> std::io::Result<()> {
        for stripe in (0..self.len).step_by((STRIPE_PAGES * PAGE_SIZE) as usize) {
            // The kernel collapses what has at least one page: reading brings it.
            // SAFETY: the offset is within the slice; concurrent writers are tolerated.
            unsafe { self.ptr.add(stripe).read_volatile() };
        }
        self.advise(libc::MADV_COLLAPSE)
    }

    fn advise(&self, advice: i32) -> std::io::Result<()> {
        // SAFETY: the range is mapped; none of the advices changes its contents.
        if unsafe { libc::madvise(self.ptr.cast(), self.len, advice) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Stretches of data that are remembered in a region: of a guest that has more, the older ones are
/// asked for again.
const KNOWN_DATA: usize = 16;

/// A region of guest RAM.
pub struct Region {
    gpa: u64,
    pages: u64,
    first_page: u64,
    first_stripe: u64,
    host: *mut u8,
    file: Option<FileOffset>,
    /// Stretches of pages known to hold data, the newest last. To ask for the end of one costs the
    /// kernel a walk over all of it, so that is not done for each piece. Only data is remembered: a
    /// hole may be filled any time.
    known_data: Mutex<Vec<(u64, u64)>>,
}

// SAFETY: `host` is only dereferenced through `RamSlice`; the mapping is kept by `Ram`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Index of the first page when all pages of the guest are counted through.
    pub fn first_page(&self) -> u64 {
        self.first_page
    }

    /// Index of the first stripe when all stripes of the guest are counted through.
    pub fn first_stripe(&self) -> u64 {
        self.first_stripe
    }

    /// The stripe in which `page` lies, of all stripes of the guest.
    pub fn stripe_of(&self, page: u64) -> u64 {
        self.first_stripe + page / STRIPE_PAGES
    }

    /// Place of `page` in a table of [`Ram::table_len`] entries.
    pub fn index(&self, page: u64) -> usize {
        (self.first_stripe * STRIPE_PAGES + page) as usize
    }

    /// Number of stripes; the last may be short.
    pub fn stripes(&self) -> u64 {
        self.pages.div_ceil(STRIPE_PAGES)
    }

    /// The next stretch of pages in `[from, to)` that its file holds data for, as `(first, end)`;
    /// everything when the region has no file or the file cannot tell.
    pub fn next_data(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        if from >= to {
            return None;
        }
        let Some(file) = &self.file else {
            return Some((from, to));
        };
        let mut known = self
            .known_data
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of = known
            .iter()
            .rev()
            .find(|(first, end)| (*first..*end).contains(&from));
        if let Some((_, end)) = of {
            return Some((from, to.min(*end)));
        }
        let fd = file.file().as_fd();
        let base = file.start();
        let data = match rustix::fs::seek(fd, SeekFrom::Data(base + from * PAGE_SIZE)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => return Some((from, to)),
        };
        let first = (data - base.min(data)) / PAGE_SIZE;
        if first >= to {
            return None;
        }
        let first = first.max(from);
        let end = rustix::fs::seek(fd, SeekFrom::Hole(base + first * PAGE_SIZE))
            .map_or(to, |hole| (hole - base.min(hole)).div_ceil(PAGE_SIZE));
        let end = end.max(first + 1);
        if known.len() == KNOWN_DATA {
            known.remove(0);
        }
        known.push((first, end));
        Some((first, end.min(to)))
    }

    /// Gives the pages back to the system, so that they read as zero; `false` if that is not
    /// possible here.
    pub fn punch(&self, page: u64, pages: u64) -> bool {
        let Some(file) = &self.file else { return false };
        rustix::fs::fallocate(
            file.file().as_fd(),
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            file.start() + page * PAGE_SIZE,
            pages * PAGE_SIZE,
        )
        .is_ok()
    }
}

/// Where a run of pages lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Index of the region.
    pub region: usize,
    /// First page in the region.
    pub page: u64,
    /// Number of pages.
    pub pages: u64,
}

impl Span {
    /// The first `pages` of it, or all, and the rest.
    pub fn split_at(self, pages: u64) -> (Self, Self) {
        let pages = pages.min(self.pages);
        let first = Self { pages, ..self };
        let rest = Self {
            page: self.page + pages,
            pages: self.pages - pages,
            ..self
        };
        (first, rest)
    }
}

/// Guest RAM, page by page.
pub struct Ram {
    regions: Vec<Region>,
    pages: u64,
    stripes: u64,
    // Keeps the mappings alive.
    _ram: GuestRam,
}

impl Ram {
    /// Indexes `ram`, which must be laid out as `layout` says.
    ///
    /// # Errors
    /// [`Error::RamLayout`] when it is not, or is not page-aligned.
    pub fn new(ram: &GuestRam, layout: &[RamRegion]) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(layout.len());
        let (mut pages, mut stripes) = (0, 0);
        if ram.num_regions() != layout.len() {
            return Err(Error::RamLayout { gpa: 0 });
        }
        for (region, described) in ram.iter().zip(layout) {
            let (gpa, len) = (region.start_addr().0, region.len());
            if gpa != described.gpa
                || len != described.len
                || !gpa.is_multiple_of(PAGE_SIZE)
                || !len.is_multiple_of(PAGE_SIZE)
            {
                return Err(Error::RamLayout { gpa: described.gpa });
            }
            let made = Region {
                gpa,
                pages: len / PAGE_SIZE,
                first_page: pages,
                first_stripe: stripes,
                host: region.as_ptr(),
                file: region.file_offset().cloned(),
                known_data: Mutex::new(Vec::with_capacity(KNOWN_DATA)),
            };
            pages += made.pages;
            stripes += made.stripes();
            regions.push(made);
        }
        Ok(Self {
            regions,
            pages,
            stripes,
            _ram: ram.clone(),
        })
    }

    /// The regions, ascending by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// All pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// All stripes.
    pub fn stripes(&self) -> u64 {
        self.stripes
    }

    /// Entries of a table of all pages in which every stripe has [`STRIPE_PAGES`]: see
    /// [`Region::index`].
    pub fn table_len(&self) -> usize {
        (self.stripes * STRIPE_PAGES) as usize
    }

    /// Finds `pages` pages from `gpa` on; `None` unless all of them lie in one region.
    pub fn find(&self, gpa: u64, pages: u64) -> Option<Span> {
        if pages == 0 || !gpa.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let page = gpa.checked_sub(region.gpa)? / PAGE_SIZE;
            let end = page.checked_add(pages)?;
            (end <= region.pages).then_some(Span {
                region: index,
                page,
                pages,
            })
        })
    }

    /// The memory of `span`; empty when it lies outside.
    pub fn slice(&self, span: Span) -> RamSlice<'_> {
        let inside = self.regions.get(span.region).filter(|region| {
            span.page
                .checked_add(span.pages)
                .is_some_and(|end| end <= region.pages)
        });
        match inside {
            Some(region) => RamSlice {
                // SAFETY: the span lies in the region, whose mapping has `pages` pages.
                ptr: unsafe { region.host.add((span.page * PAGE_SIZE) as usize) },
                len: (span.pages * PAGE_SIZE) as usize,
                ram: PhantomData,
            },
            None => RamSlice {
                ptr: std::ptr::NonNull::dangling().as_ptr(),
                len: 0,
                ram: PhantomData,
            },
        }
    }
}
