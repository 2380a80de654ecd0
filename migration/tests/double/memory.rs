//! Memory of a double, with software dirty marks.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use migration::vm::RamRegion;
use migration::{GuestRam, PAGE_SIZE};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Two regions with a gap, as a real machine has.
pub fn layout(pages: u64) -> Vec<RamRegion> {
    let low = (pages / 2).max(1);
    vec![
        RamRegion {
            gpa: 0,
            len: low * PAGE_SIZE,
        },
        RamRegion {
            gpa: 4 << 30,
            len: (pages - low).max(1) * PAGE_SIZE,
        },
    ]
}

/// A memory file and guest RAM in it.
pub fn make_ram(layout: &[RamRegion]) -> (GuestRam, File) {
    let fd = rustix::fs::memfd_create("double", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(layout.iter().map(|r| r.len).sum()).unwrap();
    let mut at = 0;
    let ranges: Vec<_> = layout
        .iter()
        .map(|region| {
            let offset = FileOffset::new(file.try_clone().unwrap(), at);
            at += region.len;
            (GuestAddress(region.gpa), region.len as usize, Some(offset))
        })
        .collect();
    (
        GuestMemoryMmap::<AtomicBitmap>::from_ranges_with_files(&ranges).unwrap(),
        file,
    )
}

/// All memory, for comparison.
pub fn contents(ram: &GuestRam, layout: &[RamRegion]) -> Vec<u8> {
    let mut all = Vec::new();
    for region in layout {
        let at = all.len();
        all.resize(at + region.len as usize, 0);
        ram.read_slice(&mut all[at..], GuestAddress(region.gpa))
            .unwrap();
    }
    all
}

/// A mark for each page of each region.
pub(super) struct Marks(pub Vec<Vec<AtomicU64>>);

impl Marks {
    pub fn none(layout: &[RamRegion]) -> Self {
        let words = |r: &RamRegion| (r.len / PAGE_SIZE).div_ceil(64);
        let clean = |r| (0..words(r)).map(|_| AtomicU64::new(0)).collect();
        Self(layout.iter().map(clean).collect())
    }

    pub fn set(&self, region: usize, page: u64) {
        self.0[region][(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    pub fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().flatten()
    }
}

/// Who writes to a page: whose mark it gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The mark stays until it is cleared.
    Vcpu,
    /// The mark is taken by who looks at it. Set whether or not somebody logs.
    Device,
}
