//! The file of a raw image past the page cache (`O_DIRECT`), and which requests fit it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::open::{self, Caching};
use crate::{Access, Buffer};

/// What fits where the kernel does not say more (before Linux 6.1, and some file systems): a page.
const PAGE: u64 = 4096;
/// Largest block of a file system that is believed.
const LARGEST_BLOCK: u64 = 1 << 20;

/// A file that was opened past the page cache, by a description of its own.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    /// What addresses in memory are multiples of.
    memory: u64,
    /// What offsets and lengths are multiples of.
    storage: u64,
    /// What the page cache reads and writes at once.
    block: u64,
}

impl Direct {
    /// Opens the file at `path`, which `opened` is; fails where there is no such access, or it is another by now.
    pub(crate) fn open(opened: &File, path: &Path, access: Access) -> io::Result<Self> {
        let file = open::file(path, access, Caching::Never)?;
        Self::of(file, opened, "another file has taken its path")
    }

    /// As [`Direct::open`], of a `file` that somebody else has opened so.
    pub(crate) fn passed(opened: &File, file: File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        if !flags.contains(OFlags::DIRECT | OFlags::RDWR) {
            return Err(io::Error::other(
                "what was passed is not open past the page cache, to be read and written",
            ));
        }
        Self::of(file, opened, "what was passed is another file")
    }

    /// `file`, which `opened` is too; else `another`.
    fn of(file: File, opened: &File, another: &str) -> io::Result<Self> {
        let (there, here) = (file.metadata()?, opened.metadata()?);
        if (there.dev(), there.ino(), there.rdev()) != (here.dev(), here.ino(), here.rdev()) {
            return Err(io::Error::other(another.to_owned()));
        }
        let asked = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let told = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, asked)?;
        let (memory, storage) = if told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
            (
                told.stx_dio_mem_align.into(),
                told.stx_dio_offset_align.into(),
            )
        } else {
            (PAGE, PAGE)
        };
        if storage == 0 {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(Self {
            file,
            memory: u64::max(memory, 1),
            storage,
            block: there.blksize().clamp(PAGE, LARGEST_BLOCK).max(storage),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What offsets and lengths are multiples of.
    pub(crate) fn storage(&self) -> u64 {
        self.storage
    }

    /// Whether the storage can move `buffers` at `offset` as they are.
    pub(crate) fn fits(&self, buffers: &[Buffer<'_>], offset: u64) -> bool {
        offset.is_multiple_of(self.storage)
            && Buffer::as_iovecs(buffers).iter().all(|iovec| {
                (iovec.iov_base.addr() as u64).is_multiple_of(self.memory)
                    && (iovec.iov_len as u64).is_multiple_of(self.storage)
            })
    }

    /// The bytes that the page cache may read and write back for those from `offset` on.
    pub(crate) fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let from = offset - offset % self.block;
        let end = offset.saturating_add(len);
        (
            from,
            end.checked_next_multiple_of(self.block).unwrap_or(u64::MAX) - from,
        )
    }
}
