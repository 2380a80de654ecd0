//! Raw images: plain files and block special files.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;

use crate::sys::{self, Direction};
use crate::{
    BlockDevice, Buffer, Claim, Error, Extent, ExtentKind, Identity, Result, SECTOR_SIZE, ZeroMode,
};

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; shared with other readers.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// What is known about the content of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: refuse an image that begins as one of another format does, because a guest would see
    /// the container instead of its disk.
    Guess,
    /// It is raw, whatever it begins with (a guest may write anything into its first sector).
    Raw,
}

/// An image whose bytes are the bytes of the disk.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    size: u64,
    access: Access,
    identity: Identity,
    /// Cleared when the storage has said that it cannot punch holes.
    can_punch: AtomicBool,
    /// Cleared when the storage has said that it cannot zero a range.
    can_zero: AtomicBool,
}

impl RawImage {
    /// Opens an image and takes its size; takes no claim on it.
    ///
    /// # Errors
    /// When it cannot be opened so, is no image, or does not look like a raw one.
    pub fn open(path: impl AsRef<Path>, access: Access, content: Content) -> Result<Self> {
        let path = path.as_ref().to_owned();
        // Non-blocking, so that a named pipe is refused and not waited for; files ignore it.
        let opened = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(open_error(path, access, source)),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Open { path, source }),
        };
        check_kind(&path, &metadata)?;
        // Seeking to the end gives the size of block special files too.
        let size = match (&file).seek(SeekFrom::End(0)) {
            Ok(size) => size,
            Err(source) => return Err(Error::Open { path, source }),
        };
        if size == 0 {
            return Err(Error::Empty { path });
        }
        if content == Content::Guess
            && let Some(format) = foreign_format(&file, size)
        {
            return Err(Error::ForeignFormat { path, format });
        }
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::Unaligned { path, size });
        }
        let identity = if metadata.file_type().is_block_device() {
            Identity {
                name: path.display().to_string(),
                device: metadata.rdev(),
                inode: 0,
            }
        } else {
            Identity {
                name: path.display().to_string(),
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        };
        Ok(Self {
            file,
            path,
            size,
            access,
            identity,
            can_punch: AtomicBool::new(true),
            can_zero: AtomicBool::new(true),
        })
    }

    /// Path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Claims the image: for this process alone when it is writable, else shared with other readers.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody else's claim is in the way.
    pub fn claim(&self) -> Result<Claim> {
        match self.access {
            Access::ReadWrite => Claim::exclusive(&self.file, &self.path),
            Access::ReadOnly => Claim::shared(&self.file, &self.path),
        }
    }

    /// Claims the image as the successor of the process that uses it now and has offered it.
    ///
    /// # Errors
    /// [`Error::InUse`] when it is not offered.
    pub fn claim_as_successor(&self) -> Result<Claim> {
        match self.access {
            Access::ReadWrite => Claim::succeed(&self.file, &self.path),
            Access::ReadOnly => Claim::shared(&self.file, &self.path),
        }
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
            Direction::Write => "write",
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
                    Direction::Write => self.io_error(
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

    fn write(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.check_change(offset, Buffer::total_len(buffers))?;
        self.transfer(Direction::Write, buffers, offset)
    }

    fn flush(&self) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.file
            .sync_data()
            .map_err(|e| self.io_error("flush", 0, self.size, e))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_change(offset, len)?;
        if len > 0 {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.allocate(&self.can_punch, flags, "discard", offset, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        const OPERATION: &str = "write zeroes to";
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
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

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < limit {
            let seek = |whence, place| match rustix::fs::seek(&self.file, whence_at(whence, place))
            {
                Ok(found) => Ok(Some(found)),
                // Nothing of the kind up to the end of the file.
                Err(rustix::io::Errno::NXIO) => Ok(None),
                // Storage that knows no holes.
                Err(rustix::io::Errno::INVAL) if whence == ExtentKind::Data => Ok(Some(place)),
                Err(rustix::io::Errno::INVAL) => Ok(None),
                Err(errno) => Err(self.io_error("map", place, end - place, errno.into())),
            };
            let data = seek(ExtentKind::Data, at)?.unwrap_or(end).min(end);
            if data > at {
                extents.push(Extent {
                    offset: at,
                    len: data - at,
                    kind: ExtentKind::Hole,
                });
                at = data;
                continue;
            }
            // A file that changes meanwhile must not make this loop turn on the spot.
            let hole = seek(ExtentKind::Hole, at)?
                .unwrap_or(end)
                .clamp(at + 1, end);
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

fn whence_at(kind: ExtentKind, place: u64) -> rustix::fs::SeekFrom {
    match kind {
        ExtentKind::Data => rustix::fs::SeekFrom::Data(place),
        ExtentKind::Hole => rustix::fs::SeekFrom::Hole(place),
    }
}

fn open_error(path: PathBuf, access: Access, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path },
        io::ErrorKind::IsADirectory => Error::Directory { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Denied {
            path,
            access: match access {
                Access::ReadOnly => "reading",
                Access::ReadWrite => "reading and writing",
            },
            source,
        },
        _ => Error::Open { path, source },
    }
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let path = path.to_owned();
    if kind.is_dir() {
        Err(Error::Directory { path })
    } else if kind.is_char_device() {
        Err(Error::NotAnImage {
            path,
            kind: "character device",
        })
    } else if kind.is_fifo() {
        Err(Error::NotAnImage {
            path,
            kind: "named pipe",
        })
    } else if kind.is_socket() {
        Err(Error::NotAnImage {
            path,
            kind: "socket",
        })
    } else {
        Ok(())
    }
}

/// The container format that the image begins (or, for VHD, ends) as.
fn foreign_format(file: &File, size: u64) -> Option<&'static str> {
    let mut head = [0; 8];
    // An image too short for a signature is judged by its size alone.
    file.read_exact_at(&mut head, 0).ok()?;
    let begins = |signature: &[u8]| head.starts_with(signature);
    if begins(b"QFI\xfb") {
        return Some("qcow2");
    }
    if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk D") {
        return Some("VMDK");
    }
    if begins(b"vhdxfile") {
        return Some("VHDX");
    }
    if begins(b"conectix") {
        return Some("VHD");
    }
    let mut foot = [0; 8];
    file.read_exact_at(&mut foot, size.checked_sub(512)?).ok()?;
    (&foot == b"conectix").then_some("VHD")
}
