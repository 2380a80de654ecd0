//! A device whose beginning is kept back: a seal is in its place, until all the rest is there and somebody opens it.
//!
//! # Invariants
//! - While it is sealed, no write reaches the first [`SEAL`] bytes of the device: they are kept here, and read from here.
//! - What is kept has the newest bytes at any moment, also while it is open: so it can be sealed again.
//! - Opened, the device begins with what was kept, durably.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pass_on::Layer;
use crate::image::seal::{SEAL, encode};
use crate::{
    BlockDevice, Buffer, Discarded, Durability, Error, Extent, ExtentKind, Result, SECTOR_SIZE,
    ZeroMode,
};

/// As whatever is written past the page cache lies in memory.
#[repr(align(4096))]
struct Page([u8; SEAL]);

struct Kept {
    page: Box<Page>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Sealed,
    Open,
}

/// A layer that keeps the beginning of a device back.
pub struct Sealed {
    inner: Arc<dyn BlockDevice>,
    seal: Box<[u8; SEAL]>,
    kept: Mutex<Kept>,
}

/// The parts of a range that lie in what is kept, and behind it, as lengths.
fn split(offset: u64, len: u64) -> (u64, u64) {
    let kept = (SEAL as u64).saturating_sub(offset).min(len);
    (kept, len - kept)
}

/// The first `len` bytes of `buffers`, and what is behind them.
fn parted<'b>(buffers: &[Buffer<'b>], len: usize) -> (Vec<Buffer<'b>>, Vec<Buffer<'b>>) {
    let (mut here, mut behind, mut left) = (Vec::new(), Vec::new(), len);
    for buffer in buffers {
        let part = buffer.take(left);
        left -= part.len();
        let rest = buffer.skip(part.len());
        here.extend((!part.is_empty()).then_some(part));
        behind.extend((!rest.is_empty()).then_some(rest));
    }
    (here, behind)
}

impl Sealed {
    /// Seals `inner`, whose content is given up, with `value`; durable when this returns. What is kept are zeroes.
    ///
    /// # Errors
    /// [`Error::Size`] when it is smaller than a seal, or `value` too long for one; and when it cannot be written.
    pub fn new(inner: Arc<dyn BlockDevice>, value: &[u8]) -> Result<Self> {
        let seal = encode(value).filter(|_| inner.size() >= SEAL as u64);
        let seal = seal.ok_or_else(|| Error::Size {
            path: inner.identity().name.into(),
            size: inner.size(),
            why: "a block device needs 4096 at least, which say that it is not whole until it is",
        })?;
        let sealed = Self {
            inner,
            seal,
            kept: Mutex::new(Kept {
                page: Box::new(Page([0; SEAL])),
                standing: Standing::Sealed,
            }),
        };
        sealed.put(&mut Page(*sealed.seal), Standing::Sealed)?;
        Ok(sealed)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the device begin with `page`, durably, of which the first sector says whether it is sealed: a power cut may leave any
    /// sectors of a write, and it never leaves one that says otherwise than the rest.
    fn put(&self, page: &mut Page, becomes: Standing) -> Result<()> {
        let (first, rest) = page.0.split_at_mut(SECTOR_SIZE as usize);
        let first = ([Buffer::new(first)], 0);
        let rest = ([Buffer::new(rest)], SECTOR_SIZE);
        let in_turn = match becomes {
            Standing::Sealed => [first, rest],
            Standing::Open => [rest, first],
        };
        let mut parts = in_turn.iter();
        let written = parts.try_for_each(|(buffers, offset)| {
            self.inner.write(buffers, *offset, Durability::Immediate)
        });
        match written {
            // Its storage takes larger blocks, and writes all of one or nothing.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                let buffers = [Buffer::new(&mut page.0)];
                self.inner.write(&buffers, 0, Durability::Immediate)
            }
            written => written,
        }
    }

    /// Puts what was kept in its place, durably. All else is to be durable by then.
    ///
    /// # Errors
    /// When it cannot be written: what the device begins with is not known then, and it has to be sealed again.
    pub fn open(&self) -> Result<()> {
        let mut kept = self.kept();
        kept.standing = Standing::Open;
        self.put(&mut kept.page, Standing::Open)
    }

    /// Seals it again, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&self) -> Result<()> {
        let mut kept = self.kept();
        kept.standing = Standing::Sealed;
        self.put(&mut Page(*self.seal), Standing::Sealed)
    }

    /// Changes what is kept of `offset` and `len` as `change` does, and the device too where it is open.
    fn keep(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut kept = self.kept();
        // Within what is kept.
        change(&mut kept.page.0[offset as usize..(offset + len) as usize]);
        match kept.standing {
            Standing::Sealed => Ok(()),
            Standing::Open => self.put(&mut kept.page, Standing::Open),
        }
    }
}

impl Layer for Sealed {
    const NAME: &'static str = "seal";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.inner.read(buffers, offset)?;
        let (len, _) = split(offset, Buffer::total_len(buffers));
        if len > 0 {
            let kept = self.kept();
            let mut bytes = &kept.page.0[offset as usize..(offset + len) as usize];
            for buffer in buffers {
                let part = buffer.take(bytes.len());
                let (now, rest) = bytes.split_at(part.len());
                part.as_volatile().copy_from(now);
                bytes = rest;
            }
        }
        Ok(())
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let (len, behind) = split(offset, Buffer::total_len(buffers));
        if len == 0 {
            return self.inner.write(buffers, offset, durability);
        }
        // Not copied for what is behind: its memory may have to lie as it does.
        let (here, rest) = parted(buffers, len as usize);
        if behind > 0 {
            self.inner.write(&rest, offset + len, durability)?;
        }
        let bytes = Buffer::copied(&here);
        self.keep(offset, len, |kept| kept.copy_from_slice(&bytes))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let (here, behind) = split(offset, len);
        if here == 0 {
            return self.inner.discard(offset, len);
        }
        if behind == 0 || self.inner.discard(offset + here, behind)? == Discarded::Kept {
            return Ok(Discarded::Kept);
        }
        self.keep(offset, here, |kept| kept.fill(0))?;
        Ok(Discarded::Zero)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let (here, behind) = split(offset, len);
        if here == 0 {
            return self.inner.write_zeroes(offset, len, mode);
        }
        if behind > 0 {
            self.inner.write_zeroes(offset + here, behind, mode)?;
        }
        self.keep(offset, here, |kept| kept.fill(0))
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        let (here, behind) = split(offset, len);
        if here == 0 || limit == 0 {
            return self.inner.extents(offset, len, limit);
        }
        let mut extents = vec![Extent {
            offset,
            len: here,
            kind: ExtentKind::Data,
        }];
        if behind > 0 && limit > 1 {
            extents.extend(self.inner.extents(offset + here, behind, limit - 1)?);
        }
        Ok(extents)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("standing", &self.kept().standing)
            .finish_non_exhaustive()
    }
}
