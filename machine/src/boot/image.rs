//! Bounded random access to a kernel or initrd, whether a file or embedded.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use migration::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use crate::opener;

/// Where the kernel comes from.
#[derive(Debug, Clone)]
pub enum KernelSource {
    /// A file on the host.
    File(PathBuf),
    /// Bytes in this binary: the probe guest.
    Embedded(&'static [u8]),
}

impl KernelSource {
    /// How messages name it.
    pub fn display_name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Embedded(_) => "the embedded probe guest".to_owned(),
        }
    }
}

enum Content {
    File(File),
    Bytes(&'static [u8]),
}

/// An image that is read piecewise and never as a whole.
pub(super) struct Image {
    name: String,
    len: u64,
    content: Content,
}

impl Image {
    pub(super) fn kernel(source: &KernelSource) -> Result<Self, BootError> {
        match source {
            KernelSource::File(path) => Self::open(path),
            KernelSource::Embedded(bytes) => Ok(Self {
                name: source.display_name(),
                len: bytes.len() as u64,
                content: Content::Bytes(bytes),
            }),
        }
    }

    pub(super) fn open(path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let failed = |source| BootError::Open {
            file: name.clone(),
            source,
        };
        let there = path.to_owned();
        let file = opener::outside(move || {
            // Without O_NONBLOCK, opening a FIFO would wait for its writer.
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(there)
        })
        .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(BootError::NotRegular { file: name });
        }
        Ok(Self {
            name,
            len: metadata.len(),
            content: Content::File(file),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Refuses a part of the image that would end behind it.
    fn check(&self, what: &'static str, offset: u64, len: u64) -> Result<(), BootError> {
        let needed = offset.saturating_add(len);
        if needed > self.len {
            return Err(BootError::Truncated {
                file: self.name.clone(),
                what,
                needed,
                have: self.len,
            });
        }
        Ok(())
    }

    /// Reads the part `what` at `offset` into `buffer`.
    pub(super) fn read(
        &self,
        what: &'static str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), BootError> {
        self.check(what, offset, buffer.len() as u64)?;
        match &self.content {
            Content::File(file) => {
                file.read_exact_at(buffer, offset)
                    .map_err(|source| BootError::Read {
                        file: self.name.clone(),
                        offset,
                        len: buffer.len() as u64,
                        source,
                    })
            }
            Content::Bytes(bytes) => {
                // In bounds by `check`.
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                Ok(())
            }
        }
    }

    /// Reads `len` bytes of the part `what` at `offset` straight into guest RAM at `gpa`.
    ///
    /// The caller has checked that `gpa..gpa + len` is RAM.
    pub(super) fn load(
        &self,
        what: &'static str,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        gpa: u64,
    ) -> Result<(), BootError> {
        self.check(what, offset, len)?;
        let failed = |source| BootError::WriteRam { what, gpa, source };
        let count = usize::try_from(len).unwrap_or(usize::MAX);
        match &self.content {
            Content::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset))
                    .map_err(|source| BootError::Read {
                        file: self.name.clone(),
                        offset,
                        len,
                        source,
                    })?;
                ram.read_exact_volatile_from(GuestAddress(gpa), &mut file, count)
                    .map_err(|error| match error {
                        vm_memory::GuestMemoryError::IOError(source) => BootError::Read {
                            file: self.name.clone(),
                            offset,
                            len,
                            source,
                        },
                        source => failed(source),
                    })
            }
            Content::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                ram.write_slice(&bytes[start..start + count], GuestAddress(gpa))
                    .map_err(failed)
            }
        }
    }
}

/// Writes the table `what` into guest RAM at `gpa`.
pub(super) fn write(
    ram: &GuestRam,
    what: &'static str,
    gpa: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(gpa))
        .map_err(|source| BootError::WriteRam { what, gpa, source })
}

/// Little-endian field of a header that was read as a whole; `at + N` lies within it.
pub(super) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}
