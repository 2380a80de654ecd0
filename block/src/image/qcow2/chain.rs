//! The images below an image, and where they may lie.
//!
//! Which file an image names as its backing file may have been written by anybody. It is opened only in the folder of the
//! disk's own image, and in those that its user permits.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::header::{BackingName, Header, MAX_HEADER};
use super::refusal::Refusal;
use crate::image::Format;
use crate::{Access, BlockDevice, Claim, Content, Error, RawImage, Result};

/// Most images below each other.
pub const MAX_BELOW: usize = 64;

/// In which folders backing files are opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackingRules {
    /// Folders that are permitted besides that of the disk's own image.
    pub permitted: Vec<PathBuf>,
}

/// An image below another, opened for reading.
#[derive(Debug)]
pub struct Below {
    pub(super) file: Arc<RawImage>,
    /// Its header, where it is qcow2.
    pub(super) header: Option<Header>,
    pub(super) claim: BelowClaim,
}

/// Who keeps others from changing an image below.
#[derive(Debug)]
pub(super) enum BelowClaim {
    /// The image above, by a claim that it shares with other readers.
    Shared(OnceLock<Claim>),
    /// Whoever had it open before, and has it for itself; until the image above shares it with other readers.
    Elsewhere(OnceLock<Claim>),
}

impl Below {
    /// Path by which it was opened.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self.header {
            Some(_) => Format::Qcow2,
            None => Format::Raw,
        }
    }
}

/// Reads the header of a file, which may be open for direct transfers only.
///
/// # Errors
/// When it cannot be read, or is none.
pub(crate) fn read_header(file: &RawImage) -> Result<Header> {
    // Aligned, as an image that is read past the page cache wants it.
    const ALIGNMENT: usize = 4096;
    let mut memory = vec![0; MAX_HEADER + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let bytes = &mut memory[skip..skip + MAX_HEADER];
    // The end of a file, where it is not aligned, is read in one transfer with what is before it.
    let there = rustix::io::pread(file.file(), &mut *bytes, 0);
    let there = there.map_err(|e| file.io_error("read", 0, MAX_HEADER as u64, e.into()))?;
    Header::parse(&bytes[..there]).map_err(refused(file))
}

/// A refusal of this image.
pub(super) fn refused(file: &RawImage) -> impl Fn(Refusal) -> Error + use<> {
    let path = file.path().to_owned();
    move |why| Error::Qcow2 {
        path: path.clone(),
        why,
    }
}

/// Opens all images below `top`, of which `header` is the header, from the next one on downwards.
///
/// # Errors
/// When one is not named well, lies elsewhere, cannot be opened or used, or they make no chain.
pub(crate) fn open(top: &RawImage, header: &Header, rules: &BackingRules) -> Result<Vec<Below>> {
    let mut below: Vec<Below> = Vec::new();
    let Some(mut backing) = header.backing.clone() else {
        return Ok(below);
    };
    let permitted = rules.folders(top.path());
    loop {
        let over = below.last().map_or(top, |last| &last.file);
        let refused = refused(over);
        if below.len() == MAX_BELOW {
            return Err(refused(Refusal::TooLong(MAX_BELOW)));
        }
        let (path, format) = resolve(over.path(), &backing).map_err(&refused)?;
        let path = path.canonicalize().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing { path: path.clone() },
            _ => Error::Open {
                path: path.clone(),
                source,
            },
        })?;
        if !permitted.iter().any(|folder| path.starts_with(folder)) {
            let folder = path.parent().unwrap_or(&path).to_owned();
            return Err(refused(Refusal::BackingOutside { path, folder }));
        }
        let file = RawImage::open(&path, Access::ReadOnly, Content::Container)?;
        let identity = file.identity();
        let is_this = |above: &RawImage| above.identity().is_same_as(&identity);
        if is_this(top) || below.iter().any(|below| is_this(&below.file)) {
            return Err(self::refused(&file)(Refusal::Loop));
        }
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => {
                let header = read_header(&file)?;
                header.check_readable().map_err(self::refused(&file))?;
                Some(header)
            }
        };
        let next = header.as_ref().and_then(|header| header.backing.clone());
        below.push(Below {
            file: Arc::new(file),
            header,
            claim: BelowClaim::Shared(OnceLock::new()),
        });
        match next {
            Some(next) => backing = next,
            None => return Ok(below),
        }
    }
}

impl BackingRules {
    /// All folders for the disk whose image is `top`, as the system knows them.
    fn folders(&self, top: &Path) -> Vec<PathBuf> {
        let own = top.parent().map(Path::to_owned);
        let all = own.iter().chain(&self.permitted);
        // One that does not exist holds no file.
        all.filter_map(|folder| {
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            folder.canonicalize().ok()
        })
        .collect()
    }
}

/// Path and format of a backing file that the image at `over` names.
pub(super) fn resolve(
    over: &Path,
    backing: &BackingName,
) -> std::result::Result<(PathBuf, Format), Refusal> {
    let BackingName { name, format } = backing;
    // As QEMU reads it: what has a colon before any slash names a protocol.
    let head = name.split('/').next().unwrap_or_default();
    if head.contains(':') || name.contains('\0') {
        return Err(Refusal::BackingName(name.clone()));
    }
    let Some(format) = format else {
        return Err(Refusal::BackingFormatMissing(name.clone()));
    };
    let format = match format.as_str() {
        "raw" | "file" | "host_device" => Format::Raw,
        "qcow2" => Format::Qcow2,
        _ => return Err(Refusal::BackingFormat(format.clone())),
    };
    let folder = over.parent().unwrap_or(Path::new(""));
    Ok((folder.join(name), format))
}
