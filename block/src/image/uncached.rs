//! A raw image past the page cache, for whoever has no ring for it: requests that do not fit the storage's blocks are bounced.
//!
//! # Invariants
//! - Nothing of the disk goes through the page cache, but zeroes that the storage makes by itself.
//! - A change of a part of a block reads and writes all of it, while no other change is under way: so none is lost to that.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::direct::Direct;
use super::raw::RawImage;
use super::sys::Direction;
use crate::{
    BlockDevice, Buffer, Discarded, Durability, Error, Extent, Identity, Result, ZeroMode,
};

/// What memory is aligned to that requests are bounced by: whatever storage asks for.
const ALIGNED: usize = 4096;
/// Zeroes that are written at once, where the storage makes none.
const ZEROES: u64 = 256 << 10;

/// A raw image whose requests go past the page cache.
#[derive(Debug)]
pub struct Uncached {
    image: Arc<RawImage>,
    /// Changes of whole blocks share it; one of a part of a block has it alone.
    changes: RwLock<()>,
}

/// Memory that storage can move.
struct Bounce {
    bytes: Vec<u8>,
    from: usize,
}

impl Bounce {
    fn of(len: u64) -> Self {
        // No larger than a request, which is in memory already.
        let bytes = vec![0; len as usize + ALIGNED];
        let from = bytes.as_ptr().align_offset(ALIGNED);
        Self { bytes, from }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - ALIGNED + self.from;
        &mut self.bytes[self.from..end]
    }
}

impl Uncached {
    /// `image`, which was [opened](RawImage::open_direct) past the page cache.
    ///
    /// # Errors
    /// [`Error::NotDirect`] when it was not, or is no whole number of blocks that its storage takes.
    pub fn new(image: Arc<RawImage>) -> Result<Self> {
        let fits = |direct: &Direct| image.size().is_multiple_of(direct.storage());
        let why = match image.direct() {
            None => Some("it was not opened so".into()),
            Some(direct) if fits(direct) => None,
            Some(direct) => Some(format!(
                "its storage takes blocks of {} bytes, and it has {}",
                direct.storage(),
                image.size()
            )),
        };
        match why {
            None => Ok(Self {
                image,
                changes: RwLock::new(()),
            }),
            Some(why) => Err(Error::NotDirect {
                path: image.path().to_owned(),
                source: io::Error::other(why),
            }),
        }
    }

    fn direct(&self) -> Result<&Direct> {
        self.image.direct().ok_or_else(|| Error::NotDirect {
            path: self.image.path().to_owned(),
            source: io::Error::other("it was not opened so"),
        })
    }

    fn share(&self) -> RwLockReadGuard<'_, ()> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves all of `bytes`, which fit.
    fn transfer(
        &self,
        direct: &Direct,
        direction: Direction,
        bytes: &mut [u8],
        offset: u64,
    ) -> Result<()> {
        let buffers = [Buffer::new(bytes)];
        self.image
            .transfer_direct(direct, direction, &buffers, offset)
    }

    /// Writes `bytes` to a range that ends and begins within blocks, of which the rest stays.
    fn write_parts(
        &self,
        direct: &Direct,
        direction: Direction,
        bytes: &[u8],
        offset: u64,
    ) -> Result<()> {
        let (from, len) = whole(direct, offset, bytes.len() as u64);
        let mut bounce = Bounce::of(len);
        let _alone = self.alone();
        self.transfer(direct, Direction::Read, bounce.bytes(), from)?;
        let at = (offset - from) as usize;
        bounce.bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        self.image
            .change(|| self.transfer(direct, direction, bounce.bytes(), from))
    }
}

/// The whole blocks that a range lies in.
fn whole(direct: &Direct, offset: u64, len: u64) -> (u64, u64) {
    let block = direct.storage();
    let from = offset - offset % block;
    (from, (offset + len).next_multiple_of(block) - from)
}

impl BlockDevice for Uncached {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        self.image.read_only()
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        let len = Buffer::total_len(buffers);
        self.image.check_range(offset, len)?;
        let direct = self.direct()?;
        if direct.fits(buffers, offset) {
            return self
                .image
                .transfer_direct(direct, Direction::Read, buffers, offset);
        }
        let (from, whole) = whole(direct, offset, len);
        let mut bounce = Bounce::of(whole);
        self.transfer(direct, Direction::Read, bounce.bytes(), from)?;
        let mut bytes = &bounce.bytes()[(offset - from) as usize..];
        for buffer in buffers {
            let (now, rest) = bytes.split_at(buffer.len());
            buffer.as_volatile().copy_from(now);
            bytes = rest;
        }
        Ok(())
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let len = Buffer::total_len(buffers);
        self.image.check_change(offset, len)?;
        let (direct, direction) = (self.direct()?, Direction::of_write(durability));
        self.image.note_write(offset);
        if direct.fits(buffers, offset) {
            let _shared = self.share();
            return self.image.change(|| {
                self.image
                    .transfer_direct(direct, direction, buffers, offset)
            });
        }
        let bytes = Buffer::copied(buffers);
        if whole(direct, offset, len) != (offset, len) {
            return self.write_parts(direct, direction, &bytes, offset);
        }
        let mut bounce = Bounce::of(len);
        bounce.bytes().copy_from_slice(&bytes);
        let _shared = self.share();
        self.image
            .change(|| self.transfer(direct, direction, bounce.bytes(), offset))
    }

    fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    fn has_unflushed_writes(&self) -> bool {
        self.image.has_unflushed_writes()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let _shared = self.share();
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.image.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.image.note_write(offset);
        let made = {
            let _shared = self.share();
            let made = || self.image.zero_by_storage(offset, len, mode);
            self.image.change(made)?
        };
        if made {
            return Ok(());
        }
        let mut zeroes = Bounce::of(len.min(ZEROES));
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROES) as usize;
            let buffers = [Buffer::new(&mut zeroes.bytes()[..piece])];
            self.write(&buffers, offset + done, Durability::Flushed)?;
            done += piece as u64;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.image.extents(offset, len, limit)
    }

    fn identity(&self) -> Identity {
        self.image.identity()
    }
}
