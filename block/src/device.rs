//! The block trait that everything else is a layer over.

use std::fmt;
use std::sync::Arc;

use crate::{Buffer, Result};

/// Bytes in a sector, the unit of a guest's addresses on a disk.
pub const SECTOR_SIZE: u64 = 512;

/// Where an image comes from, to recognise the same image opened twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// For people: the path of the image.
    pub name: String,
    /// Device number of the file system, or of the block device itself.
    pub device: u64,
    /// Inode number; 0 for a block device.
    pub inode: u64,
    /// Device and inode number of the file below a loop device, as far as it is known; as above where
    /// that is a block device.
    pub below: Option<(u64, u64)>,
    /// Whether it lies on a file system that no other host can use at the same time.
    pub is_local: bool,
}

impl Identity {
    /// Whether both, on one host, lead to the same bytes.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let places = |of: &Self| [Some((of.device, of.inode)), of.below];
        let others = places(other);
        places(self)
            .iter()
            .any(|place| place.is_some() && others.contains(place))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a stretch of an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Whatever was written.
    Data,
    /// Zeroes, for which no storage is needed.
    Zero,
    /// Nothing here yet: a layer below or another host has it, and requests for it wait until it has come.
    Absent,
}

/// A stretch of an image that holds one kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// How zeroes are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// Storage stays allocated, so that a later write cannot run out of space.
    KeepAllocated,
    /// Storage may be given back.
    MayUnmap,
}

/// When a write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After a [`BlockDevice::flush`] that began when it had ended.
    Flushed,
    /// As soon as it has ended (forced unit access).
    Immediate,
}

/// What became of a range that was discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// It reads as zeroes.
    Zero,
    /// It reads as before.
    Kept,
}

/// What is called, on any thread, whenever some of what requests wait for has come.
pub type Arrived = Arc<dyn Fn() + Send + Sync>;

/// A disk image: thread-safe, in a form that blocks.
///
/// Offsets and lengths are bytes and need no alignment. A request that returns without an error has
/// ended. Requests of several threads that overlap, one of them a change, are carried out in any order
/// and may mix; [`crate::Backend`] is the form that has several in flight and orders them.
///
/// A request for a range that is [`ExtentKind::Absent`] fails at once with [`Error::Absent`], and has
/// changed nothing that is not changed alike when it is made again.
///
/// [`Error::Absent`]: crate::Error::Absent
pub trait BlockDevice: Send + Sync {
    /// Size in bytes, a multiple of [`crate::SECTOR_SIZE`].
    fn size(&self) -> u64;

    /// Whether the image takes no changes.
    fn read_only(&self) -> bool;

    /// Fills `buffers`, in order, from byte `offset` on.
    ///
    /// # Errors
    /// When the range is outside the image or cannot be read; the buffers then hold anything.
    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()>;

    /// Writes `buffers`, in order, from byte `offset` on, as durable as asked.
    ///
    /// # Errors
    /// When the range is outside the image, the image is read-only or cannot be written; the range then
    /// holds old and new bytes in any mixture.
    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()>;

    /// Makes durable all changes that had ended when it began.
    ///
    /// # Errors
    /// When the storage did not confirm it.
    fn flush(&self) -> Result<()>;

    /// Whether there may be changes that no flush that began after them has made durable, those under way among them;
    /// answers at once.
    fn has_unflushed_writes(&self) -> bool;

    /// Says that a range is not needed any more, so that its space may be given back; all of it then
    /// reads as zeroes, or all of it as before.
    ///
    /// # Errors
    /// As for [`BlockDevice::write`].
    fn discard(&self, offset: u64, len: u64) -> Result<Discarded>;

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As for [`BlockDevice::write`].
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;

    /// Maps the range from `offset` on, in order and without gaps, in at most `limit` extents; fewer
    /// bytes than `len` are covered when the limit was reached.
    ///
    /// # Errors
    /// When the range is outside the image or the map cannot be read.
    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>>;

    /// Receives what is to be told when something absent has come; images of which nothing is ever absent
    /// need none.
    fn tell_arrivals(&self, arrived: Arrived) {
        drop(arrived);
    }

    /// Where the image comes from.
    fn identity(&self) -> Identity;
}
