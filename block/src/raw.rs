//! Raw images: plain files and block special files.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, OFlags};

pub use crate::access::Access;
use crate::claim::Locked;
use crate::open::{self, Caching};
use crate::place::{self, Below};
use crate::samples::{self, LastWrites};
use crate::sys::{self, Direction};
use crate::{
    BlockDevice, Buffer, Claim, Discarded, Durability, Error, ExclusiveOpen, Extent, ExtentKind,
    Identity, Result, SECTOR_SIZE, ZeroMode,
};

/// What is known about the content of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: refuse an image that begins as one of another format does, because a guest would see
    /// the container instead of its disk.
    Guess,
    /// It is raw, whatever it begins with (a guest may write anything into its first sector).
    Raw,
}

/// What kind of file an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A regular file.
    File,
    /// A block special file.
    BlockDevice,
}

/// An image whose bytes are the bytes of the disk.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    size: u64,
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
    /// Beginnings and ends of changes, and how many of these there were when the last flush began that was confirmed.
    changes: AtomicU64,
    flushed: AtomicU64,
}

impl RawImage {
    /// Opens an image and takes its size; takes no claim on it.
    ///
    /// # Errors
    /// When it cannot be opened so, is no image, or does not look like a raw one.
    pub fn open(path: impl AsRef<Path>, access: Access, content: Content) -> Result<Self> {
        Self::open_with(path.as_ref(), access, content, Caching::On)
    }

    /// Opens an image, known to be raw, that another process still writes, perhaps on another host. Until
    /// [`RawImage::begin_use`], nothing that is read of it stays in the page cache of this host, and reads
    /// have to be aligned to blocks of the storage, in memory and in the image.
    ///
    /// # Errors
    /// As [`RawImage::open`].
    pub fn open_beside_owner(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        Self::open_with(path.as_ref(), access, Content::Raw, Caching::Off)
    }

    fn open_with(path: &Path, access: Access, content: Content, caching: Caching) -> Result<Self> {
        let path = path.to_owned();
        let file = match open::file(&path, access, caching) {
            Ok(file) => file,
            Err(source) => return Err(open::error(path, access, source)),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Open { path, source }),
        };
        open::check_kind(&path, &metadata)?;
        // Seeking to the end gives the size of block special files too.
        let size = match (&file).seek(SeekFrom::End(0)) {
            Ok(size) => size,
            Err(source) => return Err(Error::Open { path, source }),
        };
        if size == 0 {
            return Err(Error::Empty { path });
        }
        if content == Content::Guess
            && let Some(format) = open::foreign_format(&file, size)
        {
            return Err(Error::ForeignFormat { path, format });
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::Unaligned { path, size });
        }
        let kind = if metadata.file_type().is_block_device() {
            ImageKind::BlockDevice
        } else {
            ImageKind::File
        };
        let below = place::below(&file, &metadata, access);
        let (device, inode) = place::place(&metadata);
        // A device is as far away as what is below it, as far as that is known.
        let lowest = match (&below, kind) {
            (Some(below), _) => Some(&below.file),
            (None, ImageKind::File) => Some(&file),
            (None, ImageKind::BlockDevice) => None,
        };
        let is_local = lowest.is_some_and(place::is_local);
        let identity = Identity {
            name: path.display().to_string(),
            device,
            inode,
            below: below
                .as_ref()
                .and_then(|below| below.file.metadata().ok())
                .map(|metadata| place::place(&metadata)),
            is_local,
        };
        Ok(Self {
            file,
            path,
            size,
            access,
            kind,
            identity,
            below,
            last_writes: LastWrites::none(),
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
            changes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        })
    }

    /// Path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Claims the image: for this process alone when it is writable, else shared with other readers.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody else's claim is in the way, [`Error::InUseByQemu`] when QEMU or one
    /// of its tools is.
    pub fn claim(&self) -> Result<Claim> {
        Claim::owner(self.lockable()?, self.access)
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
        cached.map_err(|errno| self.io_error("begin to use", 0, self.size, errno.into()))
    }

    /// Drops what this host's page cache holds of the image, as far as nobody has written it here.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn forget_cached(&self) -> Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|errno| self.io_error("drop from the cache", 0, self.size, errno.into()))
    }

    /// Where the image was written last: offsets of whole blocks of [`crate::samples::BLOCK`] bytes,
    /// ascending, at most [`crate::samples::REMEMBERED`].
    pub fn last_writes(&self) -> Vec<u64> {
        let mut offsets = self.last_writes.offsets();
        offsets.retain(|offset| offset + samples::BLOCK <= self.size);
        offsets
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            Ok(())
        } else {
            Err(Error::OutOfRange {
                path: self.path.clone(),
                offset,
                len,
                size: self.size,
            })
        }
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(Error::ReadOnly {
                path: self.path.clone(),
            });
        }
        self.check_range(offset, len)
    }

    /// Zeroes a range that is not empty.
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        const OPERATION: &str = "write zeroes to";
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if mode == ZeroMode::MayUnmap
            && self.allocate(&self.can_punch, punch, OPERATION, offset, len)?
        {
            return Ok(());
        }
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if self.allocate(&self.can_zero, zero, OPERATION, offset, len)? {
            return Ok(());
        }
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROES.len() as u64);
            self.file
                // At most the length of the array.
                .write_all_at(&ZEROES[..piece as usize], offset + done)
                .map_err(|e| self.io_error(OPERATION, offset + done, piece, e))?;
            done += piece;
        }
        Ok(())
    }

    /// Makes a change, which is one more to be flushed from its beginning to a flush that begins after its end.
    fn change<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let done = change();
        self.changes.fetch_add(1, Ordering::SeqCst);
        done
    }

    fn io_error(&self, operation: &'static str, offset: u64, len: u64, source: io::Error) -> Error {
        Error::Io {
            operation,
            path: self.path.clone(),
            offset,
            len,
            source,
        }
    }

    /// Moves all of `buffers`, however often the kernel stops in between.
    fn transfer(&self, direction: Direction, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        let operation = match direction {
            Direction::Read => "read",
            Direction::Write | Direction::WriteDurably => "write",
        };
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
            let done = sys::transfer(&self.file, direction, left, at)
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
                // A block device refuses ranges that do not fit its own sectors.
                Err(rustix::io::Errno::INVAL) => return Ok(false),
                Err(errno) => return Err(self.io_error(operation, offset, len, errno.into())),
            }
        }
    }
}

impl BlockDevice for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.check_range(offset, Buffer::total_len(buffers))?;
        self.transfer(Direction::Read, buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.check_change(offset, Buffer::total_len(buffers))?;
        self.last_writes.note(offset);
        let direction = match durability {
            Durability::Flushed => Direction::Write,
            Durability::Immediate => Direction::WriteDurably,
        };
        self.change(|| self.transfer(direction, buffers, offset))
    }

    fn flush(&self) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let changes = self.changes.load(Ordering::SeqCst);
        self.file
            .sync_data()
            .map_err(|e| self.io_error("flush", 0, self.size, e))?;
        // Of two flushes the one that began later may end first.
        self.flushed.fetch_max(changes, Ordering::SeqCst);
        Ok(())
    }

    fn has_unflushed_writes(&self) -> bool {
        self.changes.load(Ordering::SeqCst) != self.flushed.load(Ordering::SeqCst)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.check_change(offset, len)?;
        // A hole reads as zeroes, also in a block device, of which the kernel asks for such a discard.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = || self.allocate(&self.can_punch, flags, "discard", offset, len);
        if len > 0 && self.change(punch)? {
            Ok(Discarded::Zero)
        } else {
            Ok(Discarded::Kept)
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.last_writes.note(offset);
        self.change(|| self.zero(offset, len, mode))
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < limit {
            let seek = |whence: Whence, place| match rustix::fs::seek(&self.file, whence.at(place))
            {
                Ok(found) => Ok(Some(found)),
                // Nothing of the kind up to the end of the file.
                Err(rustix::io::Errno::NXIO) => Ok(None),
                // Storage that knows no holes.
                Err(rustix::io::Errno::INVAL) if whence == Whence::Data => Ok(Some(place)),
                Err(rustix::io::Errno::INVAL) => Ok(None),
                Err(errno) => Err(self.io_error("map", place, end - place, errno.into())),
            };
            let data = seek(Whence::Data, at)?.unwrap_or(end).min(end);
            if data > at {
                extents.push(Extent {
                    offset: at,
                    len: data - at,
                    kind: ExtentKind::Zero,
                });
                at = data;
                continue;
            }
            // A file that changes meanwhile must not make this loop turn on the spot.
            let hole = seek(Whence::Hole, at)?.unwrap_or(end).clamp(at + 1, end);
            extents.push(Extent {
                offset: at,
                len: hole - at,
                kind: ExtentKind::Data,
            });
            at = hole;
        }
        Ok(extents)
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }
}

/// What is looked for in the map of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whence {
    Data,
    Hole,
}

impl Whence {
    fn at(self, place: u64) -> rustix::fs::SeekFrom {
        match self {
            Self::Data => rustix::fs::SeekFrom::Data(place),
            Self::Hole => rustix::fs::SeekFrom::Hole(place),
        }
    }
}
