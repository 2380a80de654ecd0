//! The disk that an image shows.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

use super::chain::{self, BackingRules, Below, BelowClaim};
use super::header::Header;
use super::recount;
use super::refusal::Refusal;
use super::storage::{ImageFile, Order};
use super::tables::Tables;
use crate::{
    Access, BlockDevice, Buffer, Claim, Content, Discarded, Durability, Error, ExclusiveOpen,
    Extent, ExtentKind, Identity, RawImage, Result, ZeroMode,
};

/// A qcow2 image with the images below it.
///
/// It is opened in two steps, so that a successor can have it open while its owner still changes it: first
/// the files, of which only the headers are looked at; then, by [`Qcow2Image::begin_use`], the tables.
/// Requests fail before that.
pub struct Qcow2Image {
    pub(super) file: Arc<RawImage>,
    header: Header,
    access: Access,
    below: Vec<Below>,
    used: OnceLock<Used>,
}

/// What becomes of an image that whoever used it last has not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unclosed {
    /// Its reference counts are made anew.
    Repaired,
    /// It is not used.
    Refused,
}

/// An image that is in use.
pub(super) struct Used {
    pub(super) disk: FormatAccess<ImageFile>,
    order: Option<Arc<Order>>,
    /// Held shared by requests that leave clusters where they are, alone by those that take some away or look
    /// at more than they change.
    still: RwLock<()>,
    /// Beginnings and ends of changes, and how many of these there were when the last flush began that was
    /// confirmed.
    changes: AtomicU64,
    flushed: AtomicU64,
}

impl Qcow2Image {
    /// Opens an image and those below it, and reads their headers; takes no claim on it.
    ///
    /// # Errors
    /// When one cannot be opened so, or is refused: see [`Refusal`].
    pub fn open(path: impl AsRef<Path>, access: Access, rules: &BackingRules) -> Result<Self> {
        let file = RawImage::open(path.as_ref(), access, Content::Container)?;
        Self::over(file, access, rules)
    }

    /// As [`Qcow2Image::open`], of an image that another process still writes, perhaps on another host.
    ///
    /// # Errors
    /// As [`Qcow2Image::open`].
    pub fn open_beside_owner(
        path: impl AsRef<Path>,
        access: Access,
        rules: &BackingRules,
    ) -> Result<Self> {
        let file = RawImage::open_container_beside_owner(path.as_ref(), access)?;
        Self::over(file, access, rules)
    }

    /// An image of which somebody else has opened the file: see [`RawImage::from_opened`].
    ///
    /// # Errors
    /// As [`Qcow2Image::open`].
    pub fn from_opened(file: RawImage, access: Access, rules: &BackingRules) -> Result<Self> {
        Self::over(file, access, rules)
    }

    fn over(file: RawImage, access: Access, rules: &BackingRules) -> Result<Self> {
        Self::over_below(Arc::new(file), access, |file, header| {
            chain::open(file, header, rules)
        })
    }

    /// The image in `file` over those that `below` has opened, the next one first.
    pub(super) fn over_below(
        file: Arc<RawImage>,
        access: Access,
        below: impl FnOnce(&RawImage, &Header) -> Result<Vec<Below>>,
    ) -> Result<Self> {
        let header = chain::read_header(&file)?;
        fit(&header, access).map_err(chain::refused(&file))?;
        let below = below(&file, &header)?;
        Ok(Self {
            file,
            header,
            access,
            below,
            used: OnceLock::new(),
        })
    }

    /// Claims the image as [`RawImage::claim`] does, and those below it as readers do.
    ///
    /// # Errors
    /// As [`RawImage::claim`].
    pub fn claim(&self) -> Result<Claim> {
        let claim = self.file.claim()?;
        self.claim_below()?;
        Ok(claim)
    }

    /// As [`RawImage::claim_as_successor`], and those below it as readers do.
    ///
    /// # Errors
    /// As [`RawImage::claim_as_successor`].
    pub fn claim_as_successor(&self) -> Result<Claim> {
        let claim = self.file.claim_as_successor()?;
        self.claim_below()?;
        Ok(claim)
    }

    fn claim_below(&self) -> Result<()> {
        for below in &self.below {
            match &below.claim {
                // One that is there already stays, and this one goes.
                BelowClaim::Shared(claim) => drop(claim.set(below.file.claim()?)),
                BelowClaim::Elsewhere(_) => {}
            }
        }
        Ok(())
    }

    /// As [`RawImage::open_exclusively`].
    ///
    /// # Errors
    /// As [`RawImage::open_exclusively`].
    pub fn open_exclusively(&self) -> Result<Option<ExclusiveOpen>> {
        self.file.open_exclusively()
    }

    /// Reads the tables and lets requests in: nobody else writes the image any more, and it is claimed.
    ///
    /// Reference counts that are wrong, because whoever used it last ended in the middle, are made anew.
    /// Nothing happens when it was taken over, or is in use already.
    ///
    /// # Errors
    /// When the image is another than it was, or damaged.
    pub fn begin_use(&self) -> Result<()> {
        self.load(Unclosed::Repaired)
    }

    /// As [`Qcow2Image::begin_use`], for a successor whose predecessor has flushed the image and stands still, and who may
    /// still give it up: changes nothing. Whoever gives it up drops it.
    ///
    /// # Errors
    /// As [`Qcow2Image::begin_use`]; and when the image says that it is in use.
    pub fn take_over(&self) -> Result<()> {
        self.load(Unclosed::Refused)
    }

    fn load(&self, unclosed: Unclosed) -> Result<()> {
        if self.used.get().is_some() {
            return Ok(());
        }
        // Until now it was read past the page cache, if another host may have written it.
        self.file.begin_use()?;
        self.file.measure()?;
        let refused = chain::refused(&self.file);
        let mut header = chain::read_header(&self.file)?;
        let is_same = match self.below.first().map(|below| &below.claim) {
            Some(BelowClaim::Elsewhere(_)) => header.is_same_overlay(&self.header),
            Some(BelowClaim::Shared(_)) | None => header.is_same_disk(&self.header),
        };
        if !is_same {
            return Err(refused(Refusal::Changed));
        }
        fit(&header, self.access).map_err(&refused)?;
        if header.is_dirty() && self.access == Access::ReadWrite {
            match unclosed {
                Unclosed::Refused => return Err(refused(Refusal::InUse)),
                Unclosed::Repaired => recount::recount(&self.file, &header)?,
            }
            header = chain::read_header(&self.file)?;
        }
        let failed = |file: &RawImage| {
            let path = file.path().to_owned();
            move |source| Error::Open { path, source }
        };
        let mut lower = None;
        for below in self.below.iter().rev() {
            let file = ImageFile::new(below.file.clone(), None);
            let disk = match &below.header {
                None => Raw::builder(file)
                    .open(DenyImplicitOpenGate::default())
                    .map(FormatAccess::new),
                Some(_) => {
                    // Whoever had it open for writing may have moved its tables since.
                    let header = chain::read_header(&below.file)?;
                    let refused = chain::refused(&below.file);
                    header.check_readable().map_err(refused)?;
                    Tables::read(&below.file, &header)?;
                    over(file, Access::ReadOnly, lower.take())
                }
            };
            lower = Some(disk.map_err(failed(&below.file))?);
        }
        let tables = Tables::read(&self.file, &header)?;
        let order = match self.access {
            Access::ReadWrite => Some(Arc::new(Order::new(&header, &tables))),
            Access::ReadOnly => None,
        };
        let file = ImageFile::new(self.file.clone(), order.clone());
        let disk = over(file, self.access, lower).map_err(failed(&self.file))?;
        let used = Used {
            disk,
            order,
            still: RwLock::new(()),
            changes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        };
        // Of two who begin at once, one is too late, and its work is dropped unused.
        let _ = self.used.set(used);
        Ok(())
    }

    /// The file that holds it.
    pub fn file(&self) -> &Arc<RawImage> {
        &self.file
    }

    /// What its header said when it was opened.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The images below it, the next one first.
    pub fn below(&self) -> &[Below] {
        &self.below
    }

    pub(super) fn used(&self) -> Result<&Used> {
        self.used.get().ok_or_else(|| not_begun(&self.file))
    }

    pub(super) fn used_mut(&mut self) -> Result<&mut Used> {
        let Self { used, file, .. } = self;
        used.get_mut().ok_or_else(|| not_begun(file))
    }

    pub(super) fn failed(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> impl Fn(io::Error) -> Error {
        move |source| self.file.io_error(operation, offset, len, source)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.header.size;
        if offset.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::OutOfRange {
            path: self.file.path().to_owned(),
            offset,
            len,
            size,
        })
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(Error::ReadOnly {
                path: self.file.path().to_owned(),
            });
        }
        self.check_range(offset, len)
    }
}

fn not_begun(file: &RawImage) -> Error {
    let why = io::Error::other("the image is not in use yet");
    file.io_error("use", 0, 0, why)
}

/// Whether the image can be used so.
fn fit(header: &Header, access: Access) -> std::result::Result<(), Refusal> {
    match access {
        Access::ReadOnly => header.check_readable(),
        Access::ReadWrite => header.check_writable(),
    }
}

/// The qcow2 image in `file`, over the one below it, if there is any.
fn over(
    file: ImageFile,
    access: Access,
    lower: Option<FormatAccess<ImageFile>>,
) -> io::Result<FormatAccess<ImageFile>> {
    Qcow2::<ImageFile>::builder(file)
        .write(access == Access::ReadWrite)
        .backing(lower)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map(FormatAccess::new)
}

impl Used {
    pub(super) fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.still.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, which is one more to be flushed.
    fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let done = change();
        self.changes.fetch_add(1, Ordering::SeqCst);
        done
    }

    /// Makes durable what was changed, and leaves the image as one that nobody uses.
    fn flush(&self, file: &RawImage) -> Result<()> {
        let changes = self.changes.load(Ordering::SeqCst);
        let written = |e| file.io_error("flush", 0, file.size(), e);
        let shared = self.shared();
        self.disk.flush().map_err(written)?;
        drop(shared);
        file.flush()?;
        if let Some(order) = self.order.as_ref().filter(|order| order.is_marked()) {
            let alone = self.alone();
            // What others have changed in between; most of the time nothing.
            self.disk.flush().map_err(written)?;
            if file.has_unflushed_writes() {
                file.flush()?;
            }
            order.unmark(file).map_err(written)?;
            drop(alone);
            file.flush()?;
        }
        self.flushed.fetch_max(changes, Ordering::SeqCst);
        Ok(())
    }
}

impl BlockDevice for Qcow2Image {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        let len = Buffer::total_len(buffers);
        self.check_range(offset, len)?;
        let used = self.used()?;
        let memory: Vec<_> = buffers.iter().map(Buffer::as_volatile).collect();
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(&memory);
        let _shared = used.shared();
        let read = used.disk.readv(vector, offset);
        read.map_err(self.failed("read", offset, len))
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let len = Buffer::total_len(buffers);
        self.check_change(offset, len)?;
        let used = self.used()?;
        let memory: Vec<_> = buffers.iter().map(Buffer::as_volatile).collect();
        let (vector, _mapped) = IoVector::from_volatile_slice(&memory);
        let written = used.change(|| {
            let _shared = used.shared();
            used.disk.writev(vector, offset)
        });
        written.map_err(self.failed("write", offset, len))?;
        match durability {
            Durability::Flushed => Ok(()),
            Durability::Immediate => used.flush(&self.file),
        }
    }

    fn flush(&self) -> Result<()> {
        match (self.access, self.used.get()) {
            (Access::ReadWrite, Some(used)) => used.flush(&self.file),
            // Nothing was changed.
            (Access::ReadWrite, None) | (Access::ReadOnly, _) => Ok(()),
        }
    }

    fn has_unflushed_writes(&self) -> bool {
        self.used.get().is_some_and(|used| {
            used.changes.load(Ordering::SeqCst) != used.flushed.load(Ordering::SeqCst)
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(Discarded::Kept);
        }
        let used = self.used()?;
        let range = offset..offset + len;
        used.change(|| self.zero(used, "discard", range, ZeroMode::MayUnmap))?;
        Ok(Discarded::Zero)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let used = self.used()?;
        let range = offset..offset + len;
        used.change(|| self.zero(used, "write zeroes to", range, mode))
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.check_range(offset, len)?;
        let used = self.used()?;
        let _shared = used.shared();
        let end = offset + len;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let mapped = used.disk.get_mapping(at, end - at);
            let (mapping, len) = mapped.map_err(self.failed("map", at, end - at))?;
            let (kind, len) = match mapping {
                // The end of the disk is told as nothing, and is the end here.
                Mapping::Eof { .. } => (ExtentKind::Zero, end - at),
                Mapping::Zero { .. } => (ExtentKind::Zero, len),
                // It may be a hole of the file.
                Mapping::Raw {
                    storage, offset, ..
                } => storage.extent(offset, len)?,
                _ => (ExtentKind::Data, len),
            };
            let full = extents.len() >= limit;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len += len,
                _ if full => break,
                _ => extents.push(Extent {
                    offset: at,
                    len,
                    kind,
                }),
            }
            at += len;
        }
        Ok(extents)
    }

    fn identity(&self) -> Identity {
        self.file.identity()
    }
}

impl fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Image")
            .field("file", &self.file)
            .field("header", &self.header)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}
