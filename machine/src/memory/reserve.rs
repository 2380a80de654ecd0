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

use super::file::RamFile;
use super::ram::{self, MemoryError, allocate, layout};
use crate::threads::{self, ThreadKind};

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

/// Rooms for guests that may come, one after the other, until one stays.
#[derive(Debug)]
pub struct Rooms {
    file: RamFile,
    reserve: Option<u64>,
    /// `None` once it was taken.
    room: Option<Room>,
}

impl Rooms {
    /// Rooms in `file`, with so many bytes in waiting, or none.
    ///
    /// # Errors
    /// When the host cannot hold them, or the kernel refuses.
    pub fn new(file: RamFile, reserve: Option<u64>) -> Result<Self, MemoryError> {
        let mut rooms = Self {
            file,
            reserve,
            room: None,
        };
        rooms.room = Some(rooms.make()?);
        Ok(rooms)
    }

    fn make(&self) -> Result<Room, MemoryError> {
        let file = self.file.clone();
        match self.reserve {
            Some(size) => Reserve::new(file, size).map(Room::Reserved),
            None => Ok(Room::Empty(file)),
        }
    }

    /// The room for the guest that comes.
    pub fn take(&mut self) -> Room {
        self.room
            .take()
            .unwrap_or_else(|| Room::Empty(RamFile::memfd()))
    }

    /// Frees the room that was taken, whose guest did not come and maps nothing any more, and has one
    /// ready for the next.
    pub fn renew(&mut self) {
        if self.room.is_some() {
            return;
        }
        let made = self
            .file
            .clear()
            .map_err(|e| MemoryError::Create(0, e))
            .and_then(|()| self.make());
        match made {
            Ok(room) => self.room = Some(room),
            // The next guest allocates as it comes.
            Err(error) => tracing::warn!(%error, "no memory is in waiting for the next guest"),
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
                threads::begin(ThreadKind::Helper);
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
        ram::check_size(size)?;
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
        ram::on_file(&file, size)
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
    fn a_guest_that_did_not_come_leaves_the_room_as_it_was() {
        let size = 4 << 20;
        for file in [
            RamFile::memfd(),
            RamFile::on_own_tmpfs().unwrap_or(RamFile::memfd()),
        ] {
            let mut rooms = Rooms::new(file, None).unwrap();
            for _ in 0..2 {
                let ram = rooms.take().take(size).unwrap();
                let mut first = [1];
                ram.read_slice(&mut first, GuestAddress(0)).unwrap();
                assert_eq!(first, [0]);
                ram.write_slice(b"x", GuestAddress(0)).unwrap();
                let file = ram
                    .iter()
                    .next()
                    .unwrap()
                    .file_offset()
                    .unwrap()
                    .arc()
                    .clone();
                drop(ram);
                rooms.renew();
                // One that lies in a memfd has gone with it.
                let kept = fstat(&*file).unwrap();
                assert!(kept.st_size == 0 || Arc::strong_count(&file) == 1);
            }
        }
        let mut rooms = Rooms::new(RamFile::memfd(), Some(size)).unwrap();
        drop(rooms.take().take(size));
        rooms.renew();
        assert!(matches!(rooms.take(), Room::Reserved(_)));
    }

    #[test]
    fn a_reserve_can_be_taken_before_it_is_filled() {
        let size = 512 << 20;
        let ram = Reserve::new(RamFile::memfd(), size).unwrap().take(1 << 20);
        assert!(allocated(&ram.unwrap()) <= 1 << 20);
    }
}
