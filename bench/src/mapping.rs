//! Shared memory as guest RAM is made of it: what the plain copy moves, and what warms the host up.

use std::fs::File;
use std::io;

use machine::memory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Bytes, FileOffset, VolatileMemory, VolatileSlice};

use super::error::BenchError;
use super::interrupt;

/// Bytes of random data that are made at once.
const RANDOM_CHUNK: usize = 1 << 20;

/// Whether memory is there before it is first written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// The kernel allocates each page when it is first touched.
    Cold,
    /// All pages are allocated and mapped.
    Populated,
}

/// A memfd, mapped shared.
pub(super) struct Mapping {
    region: MmapRegion<()>,
}

impl Mapping {
    pub fn new(bytes: u64, pages: Pages) -> Result<Self, BenchError> {
        let failed = |e: io::Error| BenchError::Map(bytes, e);
        let fd = memfd_create("vmm-bench", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        ftruncate(&fd, bytes).map_err(|e| failed(e.into()))?;
        let length = usize::try_from(bytes).map_err(|e| failed(io::Error::other(e)))?;
        let populate = match pages {
            Pages::Cold => 0,
            Pages::Populated => libc::MAP_POPULATE,
        };
        let region = MmapRegionBuilder::new(length)
            .with_file_offset(FileOffset::new(File::from(fd), 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE | populate)
            .build()
            .map_err(|e| failed(io::Error::other(e)))?;
        Ok(Self { region })
    }

    pub fn len(&self) -> usize {
        self.region.size()
    }

    pub fn slice(&self, offset: usize, length: usize) -> Result<VolatileSlice<'_>, BenchError> {
        self.region
            .get_slice(offset, length)
            .map_err(|e| BenchError::Map(length as u64, io::Error::other(e)))
    }

    /// Fills the mapping with data that no two pages share.
    pub fn fill_random(&self) -> Result<(), BenchError> {
        let mut chunk = vec![0; RANDOM_CHUNK.min(self.len())];
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        for start in (0..self.len()).step_by(RANDOM_CHUNK) {
            interrupt::check()?;
            let part = chunk.len().min(self.len() - start);
            for word in chunk[..part].chunks_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
            }
            self.slice(start, part)?
                .write_slice(&chunk[..part], 0)
                .map_err(|e| BenchError::Map(part as u64, io::Error::other(e)))?;
        }
        Ok(())
    }
}

/// Marsaglia's xorshift64: fast, and incompressible enough for memory that is only moved.
pub(super) struct Xorshift(pub u64);

impl Xorshift {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// How much memory a run of the hungriest contender may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Warmth {
    /// Bytes in small pages.
    pub small: u64,
    /// Bytes in huge pages.
    pub huge: u64,
}

impl Warmth {
    /// All of it.
    pub fn bytes(self) -> u64 {
        self.small + self.huge
    }
}

/// Has the host find memory and takes it away again.
///
/// A virtual host that gives free pages back to its own host is slow to touch memory that has been
/// free for long. Done right before each timed run, every contender finds memory equally warm: in
/// small and in huge pages, which the kernel keeps apart while they are free.
pub(super) fn warm(warmth: Warmth) -> Result<(), BenchError> {
    interrupt::check()?;
    let failed = |e| BenchError::Map(warmth.huge, io::Error::other(e));
    let _huge = memory::present(warmth.huge).map_err(failed)?;
    interrupt::check()?;
    Mapping::new(warmth.small, Pages::Populated).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::proc::Process;
    use super::*;

    #[test]
    fn memory_can_be_had_cold_and_populated() {
        let bytes = 8 << 20;
        let own = Process::new(std::process::id());
        let cold = Mapping::new(bytes, Pages::Cold).unwrap();
        cold.slice(0, 1).unwrap().write_slice(&[1], 0).unwrap();
        let populated = Mapping::new(bytes, Pages::Populated).unwrap();
        // Other tests of this process may hold memory of their own.
        assert!(own.ram_bytes().unwrap() >= bytes);
        assert_eq!(cold.len(), populated.len());
        warm(Warmth {
            small: bytes,
            huge: bytes,
        })
        .unwrap();
    }

    #[test]
    fn random_memory_repeats_no_page() {
        let mapping = Mapping::new((RANDOM_CHUNK + 4096) as u64, Pages::Cold).unwrap();
        mapping.fill_random().unwrap();
        let mut pages = std::collections::HashSet::new();
        for start in (0..mapping.len()).step_by(4096) {
            let mut page = vec![0; 4096];
            mapping
                .slice(start, 4096)
                .unwrap()
                .read_slice(&mut page, 0)
                .unwrap();
            assert!(pages.insert(page), "page at {start:#x} repeats");
        }
    }
}
