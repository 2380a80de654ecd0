//! Memory that a destination has ready before a guest comes.
//!
//! First touch of memory can cost a migration more than moving the bytes. A reserve is guest RAM
//! that a thread of its own makes present, in huge pages where it can, from the moment on when the
//! destination listens; the guest that comes gets it, as far as it goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use migration::raw::{Ram, STRIPE_PAGES, Span};
use migration::vm::HugePages;
use migration::{GuestRam, PAGE_SIZE};
use rustix::fs::ftruncate;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{MemoryError, RamFile, allocate, layout};
use crate::sandbox::{self, Kind};

/// Stripes (2 MiB) between two looks at whether the reserve is still wanted.
const STEP: u64 = 16;

/// Where the RAM of a guest that is to come will lie.
#[derive(Debug)]
pub enum Room {
    /// Nothing is there yet.
    Empty(RamFile),
    /// Memory is in waiting.
    Reserved(Reserve),
}

impl Room {
    /// How RAM that lies in it gets huge pages.
    pub fn huge_pages(&self) -> HugePages {
        match self {
            Self::Empty(file) => file.huge_pages(),
            Self::Reserved(reserve) => reserve.huge,
        }
    }

    /// Guest RAM of `size` bytes.
    ///
    /// # Errors
    /// When the host cannot hold it, or the kernel refuses.
    pub fn take(self, size: u64) -> Result<GuestRam, MemoryError> {
        match self {
            Self::Empty(file) => allocate(file, size),
            Self::Reserved(reserve) => reserve.take(size),
        }
    }
}

/// Guest RAM in waiting.
#[derive(Debug)]
pub struct Reserve {
    size: u64,
    huge: HugePages,
    ram: GuestRam,
    taken: Arc<AtomicBool>,
    filling: JoinHandle<()>,
}

impl Reserve {
    /// Makes `size` bytes of `file` and has them made present in the background.
    ///
    /// # Errors
    /// When the host cannot hold it, or the kernel refuses.
    pub fn new(file: RamFile, size: u64) -> Result<Self, MemoryError> {
        let huge = file.huge_pages();
        let (ram, indexed) = make(file, size)?;
        let taken = Arc::new(AtomicBool::new(false));
        let stop = taken.clone();
        let filling = thread::Builder::new()
            .name("reserve".into())
            .spawn(move || {
                sandbox::begin(Kind::Helper);
                fill(&indexed, huge, &stop);
            })
            .map_err(MemoryError::Thread)?;
        Ok(Self {
            size,
            huge,
            ram,
            taken,
            filling,
        })
    }

    /// Guest RAM of `size` bytes with as much of the reserve in it as fits; what is over is freed.
    ///
    /// # Errors
    /// When the host cannot hold it, or the kernel refuses.
    pub fn take(self, size: u64) -> Result<GuestRam, MemoryError> {
        let Self {
            size: reserved,
            ram,
            taken,
            filling,
            ..
        } = self;
        taken.store(true, Ordering::Relaxed);
        if filling.join().is_err() {
            tracing::warn!("the thread that fills the reserve died");
        }
        super::check_size(size)?;
        if size == reserved {
            return Ok(ram);
        }
        let failed = |e: io::Error| MemoryError::Create(size, e);
        let file = ram
            .iter()
            .next()
            .and_then(|region| region.file_offset())
            .ok_or(MemoryError::Layout)?
            .arc()
            .clone();
        drop(ram);
        ftruncate(&*file, size).map_err(|e| failed(e.into()))?;
        super::on_file(&file, size)
    }
}

/// Guest RAM of `size` bytes, all of it present, in huge pages where they can be had.
///
/// # Errors
/// When the host cannot hold it, or the kernel refuses.
pub fn present(size: u64) -> Result<GuestRam, MemoryError> {
    let file = RamFile::memfd();
    let huge = file.huge_pages();
    let (ram, indexed) = make(file, size)?;
    fill(&indexed, huge, &AtomicBool::new(false));
    Ok(ram)
}

fn make(file: RamFile, size: u64) -> Result<(GuestRam, Ram), MemoryError> {
    let ram = allocate(file, size)?;
    let indexed = Ram::new(&ram, &layout(size)).map_err(|_| MemoryError::Layout)?;
    Ok((ram, indexed))
}

/// Makes all of `ram` present, until `stop` is set.
fn fill(ram: &Ram, how: HugePages, stop: &AtomicBool) {
    let mut huge = true;
    for (index, region) in ram.regions().iter().enumerate() {
        let mut page = 0;
        while page < region.pages() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let pages = (STEP * STRIPE_PAGES).min(region.pages() - page);
            let slice = ram.slice(Span {
                region: index,
                page,
                pages,
            });
            huge = huge && slice.make_huge(how).is_ok();
            // Without huge pages, and for the end that fills none.
            if (!huge || !pages.is_multiple_of(STRIPE_PAGES))
                && let Err(e) = slice.populate()
            {
                tracing::warn!(error = %e, "memory is not reserved beyond {} MiB", (page * PAGE_SIZE) >> 20);
                return;
            }
            page += pages;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::fs::fstat;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn allocated(ram: &GuestRam) -> u64 {
        let file = ram.iter().next().unwrap().file_offset().unwrap().arc();
        fstat(&**file).unwrap().st_blocks as u64 * 512
    }

    fn filled(size: u64) -> Reserve {
        let reserve = Reserve::new(RamFile::memfd(), size).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while allocated(&reserve.ram) < size && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        reserve
    }

    #[test]
    fn a_reserve_becomes_present_and_is_all_zero() {
        let size = (8 << 20) + PAGE_SIZE;
        let ram = filled(size).take(size).unwrap();
        assert_eq!(allocated(&ram), size);
        let mut all = vec![1; size as usize];
        ram.read_slice(&mut all, GuestAddress(0)).unwrap();
        assert!(all.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_guest_of_another_size_gets_what_there_is_and_no_more() {
        let size = 8 << 20;
        let smaller = filled(size).take(size / 2).unwrap();
        assert_eq!(allocated(&smaller), size / 2);
        let larger = filled(size).take(2 * size).unwrap();
        assert_eq!(allocated(&larger), size);
        larger
            .write_slice(b"x", GuestAddress(2 * size - 1))
            .unwrap();
    }

    #[test]
    fn a_reserve_can_be_taken_before_it_is_filled() {
        let size = 512 << 20;
        let ram = Reserve::new(RamFile::memfd(), size).unwrap().take(1 << 20);
        assert!(allocated(&ram.unwrap()) <= 1 << 20);
    }
}
