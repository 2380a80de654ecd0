//! A file as imago sees it, and the order in which it is written.
//!
//! imago writes entries of tables before what they tell of is on the storage. The order that is needed is
//! made here: before a table is changed, all data that was written earlier is made durable, so
//! that no entry ever leads to something that a power cut has taken. And the image says that it is in use
//! (the dirty bit) from before the first change of a table or count on, until all of them agree.
#![allow(unsafe_code)] // imago's trait has unsafe methods; none does anything unsafe here.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::storage::{PreallocateMode, Storage};

use super::entry;
use super::header::{DIRTY, Header, INCOMPATIBLE, Place, V2_LEN};
use super::tables::Tables;
use crate::{BlockDevice, Error, ExtentKind, RawImage, Result, ZeroMode};

/// Most pieces of memory in one system call (`UIO_MAXIOV`).
const MAX_VECTOR: usize = 1024;

/// Where the tables lie.
#[derive(Debug)]
struct Layout {
    l1: Place,
    refcount_table: Place,
    /// First bytes of L2 tables.
    l2: HashSet<u64>,
    /// First bytes of refcount blocks.
    counts: HashSet<u64>,
}

/// What a write changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Header,
    L1,
    RefcountTable,
    L2,
    Counts,
    /// Data, and tables to which nothing leads yet.
    Other,
}

/// The order of writes to an image.
#[derive(Debug)]
pub(super) struct Order {
    cluster_bits: u32,
    incompatible: u64,
    layout: RwLock<Layout>,
    /// Beginnings and ends of writes that a table must not overtake, and how many there were when all were
    /// durable last.
    writes: AtomicU64,
    durable: AtomicU64,
    /// Whether the image says that it is in use.
    marked: Mutex<bool>,
}

impl Order {
    pub(super) fn new(header: &Header, tables: &Tables) -> Self {
        let known = |offsets: &[u64]| {
            let offsets = offsets.iter().copied();
            offsets.filter(|&offset| offset != 0).collect()
        };
        Self {
            cluster_bits: header.cluster_bits,
            incompatible: header.incompatible & !DIRTY,
            layout: RwLock::new(Layout {
                l1: header.l1,
                refcount_table: header.refcount_table,
                l2: known(&tables.l2),
                counts: known(&tables.refcount_blocks),
            }),
            writes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            marked: Mutex::new(header.is_dirty()),
        }
    }

    fn marked(&self) -> MutexGuard<'_, bool> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the image says that it is in use.
    pub(super) fn is_marked(&self) -> bool {
        *self.marked()
    }

    fn target(&self, offset: u64, len: u64) -> Target {
        if offset >> self.cluster_bits == 0 {
            return Target::Header;
        }
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        let touches =
            |place: Place| offset < place.offset + place.len && place.offset < offset + len;
        if touches(layout.l1) {
            Target::L1
        } else if touches(layout.refcount_table) {
            Target::RefcountTable
        } else if layout.l2.contains(&offset) {
            Target::L2
        } else if layout.counts.contains(&offset) {
            Target::Counts
        } else {
            Target::Other
        }
    }

    /// Makes a write that no table may overtake.
    fn before_tables<T>(&self, write: impl FnOnce() -> T) -> T {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let written = write();
        self.writes.fetch_add(1, Ordering::SeqCst);
        written
    }

    /// Says in the image that it is in use, if it does not yet; it is durable then, and so is all that was written earlier.
    fn mark(&self, file: &RawImage) -> io::Result<()> {
        let mut marked = self.marked();
        if !*marked {
            self.before_tables(|| self.write_mark(file, DIRTY))?;
            self.make_durable(file)?;
            *marked = true;
        }
        Ok(())
    }

    fn make_durable(&self, file: &RawImage) -> io::Result<()> {
        let writes = self.writes.load(Ordering::SeqCst);
        if self.durable.load(Ordering::SeqCst) < writes {
            file.flush().map_err(io::Error::other)?;
            self.durable.fetch_max(writes, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Lets a table be written: what came before is durable then, and the image marked.
    fn table_follows(&self, file: &RawImage) -> io::Result<()> {
        self.mark(file)?;
        self.make_durable(file)
    }

    /// Says in the image that it is not in use, when all that it consists of is durable, and nothing changes it
    /// meanwhile.
    pub(super) fn unmark(&self, file: &RawImage) -> io::Result<()> {
        let mut marked = self.marked();
        if *marked {
            self.before_tables(|| self.write_mark(file, 0))?;
            *marked = false;
        }
        Ok(())
    }

    fn write_mark(&self, file: &RawImage, bit: u64) -> io::Result<()> {
        let bits = (self.incompatible | bit).to_be_bytes();
        write_all(file, &mut [IoSlice::new(&bits)], INCOMPATIBLE)
    }

    /// Learns from what was written where tables lie.
    fn learn(&self, target: Target, offset: u64, bytes: &[u8]) {
        let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        match target {
            Target::L1 => {
                let tables = entry::entries(bytes).map(entry::l2_table);
                layout.l2.extend(tables.filter(|&table| table != 0));
            }
            Target::Header if offset == 0 => {
                let long = |at: usize| {
                    let field = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
                    field.map_or(0, u64::from_be_bytes)
                };
                let word = |at: usize| long(at) >> 32;
                layout.l1 = Place {
                    offset: long(40),
                    len: word(36) * 8,
                };
                layout.refcount_table = Place {
                    offset: long(48),
                    len: word(56) << self.cluster_bits,
                };
            }
            Target::RefcountTable => {
                let blocks = entry::entries(bytes).filter(|&block| block != 0);
                layout.counts.extend(blocks);
            }
            Target::Header | Target::L2 | Target::Counts | Target::Other => {}
        }
    }
}

/// A file of an image, with its order where it is written.
pub(super) struct ImageFile {
    file: Arc<RawImage>,
    order: Option<Arc<Order>>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    pub(super) fn new(file: Arc<RawImage>, order: Option<Arc<Order>>) -> Self {
        Self {
            file,
            order,
            helper: CommonStorageHelper::default(),
        }
    }

    /// What a stretch of the file that is not empty begins with, and how long that is.
    pub(super) fn extent(&self, offset: u64, len: u64) -> Result<(ExtentKind, u64)> {
        let there = self.file.size().saturating_sub(offset).min(len);
        let extents = self.file.extents(offset.min(self.file.size()), there, 1)?;
        let first = extents.first();
        Ok(first.map_or((ExtentKind::Zero, len), |first| (first.kind, first.len)))
    }

    /// Changes what is no table, where `offset` is none of the header's.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce() -> Result<()>) -> io::Result<()> {
        let changed = || self.file.change_at(offset, len, change);
        let changed = match &self.order {
            Some(order) if order.target(offset, len) == Target::Header => {
                return Err(header_is_no_data());
            }
            Some(order) => order.before_tables(changed),
            None => changed(),
        };
        changed.map_err(as_io)
    }
}

/// An entry of a table leads to the header: what a guest writes must not get there.
fn header_is_no_data() -> io::Error {
    io::Error::other("a table of the image says that a part of the disk lies in its header")
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        error => io::Error::other(error),
    }
}

/// Writes all of `pieces`, however often the kernel stops in between.
fn write_all(file: &RawImage, mut pieces: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let begin = offset;
    let mut written = || {
        while !pieces.is_empty() {
            let some = &pieces[..pieces.len().min(MAX_VECTOR)];
            match rustix::io::pwritev(file.file(), some, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(done) => {
                    IoSlice::advance_slices(&mut pieces, done);
                    offset += done as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    };
    let changed = file.change_at(begin, len as u64, || {
        written().map_err(|e| file.io_error("write", begin, len as u64, e))
    });
    changed.map_err(as_io)
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.size())
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.file.path().to_owned())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        let mut pieces = bufv.into_inner();
        let mut left = &mut pieces[..];
        while !left.is_empty() {
            let most = left.len().min(MAX_VECTOR);
            match rustix::io::preadv(self.file.file(), &mut left[..most], offset) {
                Ok(0) => {
                    for piece in left.iter_mut() {
                        piece.fill(0);
                    }
                    return Ok(());
                }
                Ok(done) => {
                    IoSliceMut::advance_slices(&mut left, done);
                    offset += done as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let len = bufv.len();
        let Some(order) = &self.order else {
            return write_all(&self.file, &mut bufv.into_inner(), offset);
        };
        let target = order.target(offset, len);
        match target {
            // Wrong until the tables are written too, which the mark tells: they need not wait for it.
            Target::Counts => {
                order.mark(&self.file)?;
                write_all(&self.file, &mut bufv.into_inner(), offset)
            }
            Target::Other => {
                let mut pieces = bufv.into_inner();
                order.before_tables(|| write_all(&self.file, &mut pieces, offset))
            }
            Target::Header if offset != 0 || len != V2_LEN as u64 => Err(header_is_no_data()),
            Target::Header | Target::L1 | Target::RefcountTable | Target::L2 => {
                order.table_follows(&self.file)?;
                let mut bytes = Vec::new();
                if target != Target::L2 {
                    bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
                    bufv.copy_into_slice(&mut bytes);
                }
                write_all(&self.file, &mut bufv.into_inner(), offset)?;
                order.learn(target, offset, &bytes);
                Ok(())
            }
        }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let len = length.min(self.file.size().saturating_sub(offset));
        if len == 0 {
            // Behind the end of the file everything reads as zeroes.
            return Ok(());
        }
        self.change(offset, len, || {
            self.file.zero(offset, len, ZeroMode::MayUnmap)
        })
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(offset, length, || {
            self.file.zero(offset, length, ZeroMode::KeepAllocated)
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.flush().map_err(as_io)
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, allocation: PreallocateMode) -> io::Result<()> {
        if allocation != PreallocateMode::None {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.file.file().set_len(new_size)?;
        self.file.measure().map_err(as_io)
    }
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImageFile").field(&self.file.path()).finish()
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.path().display())
    }
}
