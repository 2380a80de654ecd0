//! Raw images: plain files and block special files.

mod device;
mod opening;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, OFlags};

use super::direct::Direct;
use super::place;
pub use super::place::Below;
use super::samples::{self, LastWrites};
use super::sys::{self, Direction};
use super::unflushed::Unflushed;
pub use crate::access::Access;
use crate::claim::Locked;
use crate::{BlockDevice, Buffer, Claim, Error, ExclusiveOpen, Identity, Result, ZeroMode};

/// What is known about the content of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: refuse an image that begins as one of another format does, because a guest would see
    /// the container instead of its disk.
    Guess,
    /// It is raw, whatever it begins with (a guest may write anything into its first sector).
    Raw,
    /// It is a container that a layer of another format reads and writes, and may make longer.
    Container,
}

/// What kind of file an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A regular file.
    File,
    /// A block special file.
    BlockDevice,
}

/// Who can reach the storage of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This host alone, at any one time.
    ThisHost,
    /// Other hosts as well, perhaps.
    OtherHosts,
}

impl Reach {
    /// Of an open file.
    pub fn of(file: &File) -> Self {
        if place::is_local(file) {
            Self::ThisHost
        } else {
            Self::OtherHosts
        }
    }
}

/// An image whose bytes are the bytes of the disk.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    /// The same file, to be read past the page cache by copies; `None` where that cannot be.
    uncached: Option<Direct>,
    path: PathBuf,
    size: AtomicU64,
    access: Access,
    kind: ImageKind,
    identity: Identity,
    /// What a loop device shows.
    below: Option<Below>,
    last_writes: LastWrites,
    /// Cleared when the storage has said that it cannot punch holes.
    can_punch: AtomicBool,
    /// Cleared when the storage has said that it cannot zero a range.
    can_zero: AtomicBool,
    unflushed: Unflushed,
    /// The same file past the page cache, once it was asked for.
    direct: OnceLock<Direct>,
}

/// What making zeroes is called in an error.
const ZEROING: &str = "write zeroes to";

/// As whatever is written beside the page cache has to lie in memory.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);

impl RawImage {
    /// Path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that it shows, if it is a loop device that shows all of it.
    pub fn below(&self) -> Option<&Below> {
        self.below.as_ref()
    }

    /// What kind of file it is.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Whether it can still be found by a name.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn has_name(&self) -> Result<bool> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|e| self.io_error("look at", 0, 0, e))?;
        Ok(metadata.nlink() > 0)
    }

    /// Claims the image: for this process alone when it is writable, else shared with other readers.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody else's claim is in the way, [`Error::InUseByQemu`] when QEMU or one
    /// of its tools is.
    pub fn claim(&self) -> Result<Claim> {
        Claim::owner(self.lockable()?, self.access)
    }

    /// Claims the image together with other readers, also where it was opened to be written.
    ///
    /// # Errors
    /// As [`RawImage::claim`].
    pub fn claim_as_reader(&self) -> Result<Claim> {
        Claim::owner(self.lockable()?, Access::ReadOnly)
    }

    /// Claims the image as the successor of the process that uses it now and has offered it.
    ///
    /// # Errors
    /// [`Error::InUse`] when it is not offered.
    pub fn claim_as_successor(&self) -> Result<Claim> {
        Claim::successor(self.lockable()?, self.access)
    }

    /// Whether somebody else owns the image, be it a reader, as far as locks tell: not those of another
    /// host where the storage does not carry them.
    ///
    /// # Errors
    /// When the locks cannot be used at all.
    pub fn has_owner(&self) -> Result<bool> {
        for file in self.lockable()? {
            if file.has_owner()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether anybody else uses the image, be it for reading, as far as locks tell.
    ///
    /// # Errors
    /// When the locks cannot be used at all.
    pub fn is_in_use(&self) -> Result<bool> {
        for file in self.lockable()? {
            if file.has_owner()? || file.is_used_by_qemu(Access::ReadWrite)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The files whose locks stand for the image: itself, and what lies below.
    fn lockable(&self) -> Result<Vec<Locked>> {
        let mut files = vec![Locked::new(&self.file, &self.path)?];
        if let Some(Below { file, path }) = &self.below {
            files.push(Locked::new(file, path)?);
        }
        Ok(files)
    }

    /// Opens the block device exclusively, so that nobody mounts it or uses it by another node; nothing for a
    /// file, or an image that is only read.
    ///
    /// # Errors
    /// [`Error::OpenedExclusively`] when it is mounted, or somebody else has opened it so.
    pub fn open_exclusively(&self) -> Result<Option<ExclusiveOpen>> {
        match (self.kind, self.access) {
            (ImageKind::BlockDevice, Access::ReadWrite) => {
                ExclusiveOpen::take(&self.path, self.identity.device).map(Some)
            }
            (ImageKind::BlockDevice, Access::ReadOnly) | (ImageKind::File, _) => Ok(None),
        }
    }

    /// Makes the image as any other, once nobody else writes it: see [`RawImage::open_beside_owner`].
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn begin_use(&self) -> Result<()> {
        let cached = rustix::fs::fcntl_getfl(&self.file)
            .and_then(|flags| rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT));
        cached.map_err(|errno| self.io_error("begin to use", 0, self.size(), errno.into()))
    }

    /// Drops what this host's page cache holds of the image, as far as nobody has written it here.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn forget_cached(&self) -> Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|errno| self.io_error("drop from the cache", 0, self.size(), errno.into()))
    }

    /// Bytes that its storage has given to it, as far as that is told at once; of a block device all.
    pub fn allocated(&self) -> u64 {
        let size = self.size();
        match (self.kind, rustix::fs::fstat(&self.file)) {
            (ImageKind::File, Ok(stat)) => size.min(stat.st_blocks.unsigned_abs() * 512),
            _ => size,
        }
    }

    /// Reads as [`BlockDevice::read`] does, for a copy: what is read does not stay in the page cache, where the file system
    /// can go without. What the guest has written there and is not stored yet is stored first. Fast only where
    /// offset, memory and length are whole pages.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    pub fn read_uncached(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.check_range(offset, Buffer::total_len(buffers))?;
        match self.uncached.as_ref().or(self.direct.get()) {
            Some(uncached) if uncached.fits(buffers, offset) => {
                self.transfer(uncached.file(), Direction::Read, buffers, offset)
            }
            _ => self.read(buffers, offset),
        }
    }

    /// Where the image was written last: offsets of whole blocks of [`crate::samples::BLOCK`] bytes,
    /// ascending, at most [`crate::samples::REMEMBERED`].
    pub fn last_writes(&self) -> Vec<u64> {
        let mut offsets = self.last_writes.offsets();
        offsets.retain(|offset| offset + samples::BLOCK <= self.size());
        offsets
    }

    /// The file itself, for a layer that reads and writes it as its container.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Takes the size anew, which its owner may have changed.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn measure(&self) -> Result<()> {
        let size = (&self.file).seek(SeekFrom::End(0));
        let size = size.map_err(|e| self.io_error("measure", 0, 0, e))?;
        self.size.store(size, Ordering::SeqCst);
        Ok(())
    }

    /// Makes the file as long as a layer needs it, if it is shorter.
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn lengthen(&self, size: u64) -> Result<()> {
        if size > self.size() && self.kind == ImageKind::File {
            let longer = self.file.set_len(size);
            longer.map_err(|e| self.io_error("lengthen", 0, size, e))?;
            self.size.store(size, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Notes where a layer changes its container, which may become longer by that, and makes the change.
    pub(crate) fn change_at<T>(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.last_writes.note(offset);
        let changed = self.change(change)?;
        self.size
            .fetch_max(offset.saturating_add(len), Ordering::SeqCst);
        Ok(changed)
    }

    /// Opens the same file once more, past the page cache, for whoever has several requests in flight: what it moves so
    /// fits the storage's blocks. All that is not given to [`RawImage::direct`] goes through the page cache as before, and
    /// the kernel keeps both the same.
    ///
    /// # Errors
    /// [`Error::NotDirect`] where the storage cannot do without a page cache.
    pub fn open_direct(&self) -> Result<()> {
        if self.direct.get().is_none() {
            let direct = Direct::open(&self.file, &self.path, self.access);
            let direct = direct.map_err(|source| Error::NotDirect {
                path: self.path.clone(),
                source,
            })?;
            // Another thread may have been faster, with the same.
            let _ = self.direct.set(direct);
        }
        Ok(())
    }

    /// As [`RawImage::open_direct`], with what somebody else has opened so.
    ///
    /// # Errors
    /// [`Error::NotDirect`] where it is another file, or not open so.
    pub fn pass_direct(&self, file: File) -> Result<()> {
        let direct = Direct::passed(&self.file, file);
        let direct = direct.map_err(|source| Error::NotDirect {
            path: self.path.clone(),
            source,
        })?;
        let _ = self.direct.set(direct);
        Ok(())
    }

    /// The file past the page cache, if it was opened so.
    pub(crate) fn direct(&self) -> Option<&Direct> {
        self.direct.get()
    }

    /// What of the image is not durable.
    pub(crate) fn unflushed(&self) -> &Unflushed {
        &self.unflushed
    }

    /// Notes that it is about to be written at `offset`.
    pub(crate) fn note_write(&self, offset: u64) {
        self.last_writes.note(offset);
    }

    /// Moves all of `buffers` past the page cache, which they fit, however often the kernel stops in between.
    pub(crate) fn transfer_direct(
        &self,
        direct: &Direct,
        direction: Direction,
        buffers: &[Buffer<'_>],
        offset: u64,
    ) -> Result<()> {
        self.transfer(direct.file(), direction, buffers, offset)
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        if offset
            .checked_add(len)
            .is_some_and(|end| end <= self.size())
        {
            Ok(())
        } else {
            Err(Error::OutOfRange {
                path: self.path.clone(),
                offset,
                len,
                size: self.size(),
            })
        }
    }

    pub(crate) fn check_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(Error::ReadOnly {
                path: self.path.clone(),
            });
        }
        self.check_range(offset, len)
    }

    /// Has the storage zero a range that is not empty; whether it has. A block device does so by a discard only where it
    /// says that this reads as zeroes (`fallocate`, in the kernel's block/fops.c).
    pub(crate) fn zero_by_storage(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<bool> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if mode == ZeroMode::MayUnmap
            && self.allocate(&self.can_punch, punch, ZEROING, offset, len)?
        {
            return Ok(true);
        }
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.allocate(&self.can_zero, zero, ZEROING, offset, len)
    }

    /// Zeroes a range that is not empty.
    pub(crate) fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        if self.zero_by_storage(offset, len, mode)? {
            return Ok(());
        }
        static ZEROES: Zeroes = Zeroes([0; 64 << 10]);
        let Zeroes(zeroes) = &ZEROES;
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(zeroes.len() as u64);
            self.file
                // At most the length of the array.
                .write_all_at(&zeroes[..piece as usize], offset + done)
                .map_err(|e| self.io_error(ZEROING, offset + done, piece, e))?;
            done += piece;
        }
        Ok(())
    }

    /// Makes a change, which is one more to be flushed from its beginning to a flush that begins after its end.
    pub(crate) fn change<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.unflushed.begin_change();
        let done = change();
        self.unflushed.end_change();
        done
    }

    pub(crate) fn io_error(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        source: io::Error,
    ) -> Error {
        Error::Io {
            operation,
            path: self.path.clone(),
            offset,
            len,
            source,
        }
    }

    /// Moves all of `buffers`, however often the kernel stops in between.
    fn transfer(
        &self,
        file: &File,
        direction: Direction,
        buffers: &[Buffer<'_>],
        offset: u64,
    ) -> Result<()> {
        let operation = direction.operation();
        let mut at = offset;
        let mut left = buffers;
        let mut stopped: Vec<Buffer<'_>>;
        loop {
            while left.first().is_some_and(Buffer::is_empty) {
                left = &left[1..];
            }
            if left.is_empty() {
                return Ok(());
            }
            let done = sys::transfer(file, direction, left, at)
                .map_err(|e| self.io_error(operation, at, Buffer::total_len(left), e))?;
            if done == 0 {
                return Err(match direction {
                    Direction::Read => Error::Short {
                        path: self.path.clone(),
                        offset: at,
                    },
                    Direction::Write | Direction::WriteDurably => self.io_error(
                        operation,
                        at,
                        Buffer::total_len(left),
                        io::ErrorKind::WriteZero.into(),
                    ),
                });
            }
            at += done as u64;
            let mut skip = done;
            while let Some(first) = left.first()
                && skip >= first.len()
            {
                skip -= first.len();
                left = &left[1..];
            }
            if skip > 0 {
                // The kernel stopped inside a buffer, which is rare enough for a copy of the vector.
                let mut rest = left.to_vec();
                rest[0] = rest[0].skip(skip);
                stopped = rest;
                left = &stopped;
            }
        }
    }

    /// Asks the storage to change a range; `false` when it cannot, which is remembered in `supported`.
    fn allocate(
        &self,
        supported: &AtomicBool,
        flags: FallocateFlags,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<bool> {
        if !supported.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                    supported.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                // A block device refuses ranges that do not fit its own sectors; and those of which the page cache has
                // what is not stored yet, while it is open exclusively.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::BUSY) => return Ok(false),
                Err(errno) => return Err(self.io_error(operation, offset, len, errno.into())),
            }
        }
    }
}
