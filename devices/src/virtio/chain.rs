//! A request: the buffers that its descriptor chain names.

use block::Buffer;
use migration::GuestRam;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// A piece of guest memory whose writes are tracked.
pub type GuestSlice<'r> = VolatileSlice<'r, BS<'r, AtomicBitmap>>;

/// A request, or a ring, that breaks the rules of virtio; the device then needs a reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// A descriptor names memory that the guest does not have.
    #[error("buffer of {len:#x} bytes at {addr:#x} is not in guest memory")]
    NotInRam {
        /// Guest-physical address.
        addr: u64,
        /// Length.
        len: u32,
    },
    /// A request has more descriptors than the device takes.
    #[error("request of more than {limit} descriptors")]
    TooManyDescriptors {
        /// Most that are taken.
        limit: usize,
    },
    /// Memory to be read comes after memory to be written.
    #[error("readable buffer behind a writable one")]
    WrongOrder,
    /// Memory that the device has to fill is only to be read.
    #[error("buffer of {len:#x} bytes at {addr:#x} cannot be written")]
    NotWritable {
        /// Guest-physical address.
        addr: u64,
        /// Length.
        len: u32,
    },
    /// The memory of a request is too short for what it has to hold.
    #[error("request of {readable} readable and {writable} writable bytes is too short")]
    TooShort {
        /// Bytes to be read by the device.
        readable: u64,
        /// Bytes to be written by the device.
        writable: u64,
    },
    /// The head of a request is not in the descriptor table.
    #[error("descriptor {index} is outside the table of {size}")]
    HeadOutOfRange {
        /// Index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// The ring itself is broken.
    #[error("broken ring: {0}")]
    Ring(String),
}

/// The memory of one request: first what the device reads, then what it writes.
///
/// Kept by a queue's thread from request to request, so that taking one allocates nothing.
#[derive(Debug, Default)]
pub struct Chain<'r> {
    readable: Vec<GuestSlice<'r>>,
    writable: Vec<GuestSlice<'r>>,
    buffers: Vec<Buffer<'r>>,
    readable_len: u64,
    writable_len: u64,
}

impl<'r> Chain<'r> {
    /// An empty request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets its memory.
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.buffers.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Takes the memory that `descriptors` name, at most `limit` of them.
    ///
    /// # Errors
    /// When they break the rules.
    pub fn load(
        &mut self,
        ram: &'r GuestRam,
        descriptors: impl Iterator<Item = Descriptor>,
        limit: usize,
    ) -> Result<(), BadRequest> {
        self.clear();
        for (count, descriptor) in descriptors.enumerate() {
            if count >= limit {
                return Err(BadRequest::TooManyDescriptors { limit });
            }
            let (slices, total) = if descriptor.is_write_only() {
                (&mut self.writable, &mut self.writable_len)
            } else if self.writable.is_empty() {
                (&mut self.readable, &mut self.readable_len)
            } else {
                return Err(BadRequest::WrongOrder);
            };
            let len = descriptor.len();
            for slice in ram.get_slices(descriptor.addr(), len as usize) {
                let slice = slice.map_err(|_| BadRequest::NotInRam {
                    addr: descriptor.addr().0,
                    len,
                })?;
                slices.push(slice);
            }
            *total += u64::from(len);
        }
        Ok(())
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copies bytes of the readable part, from `offset` on.
    ///
    /// # Errors
    /// When the part is shorter than that.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), BadRequest> {
        if offset
            .checked_add(into.len() as u64)
            .is_none_or(|end| end > self.readable_len)
        {
            return Err(self.too_short());
        }
        let mut at = 0;
        for piece in pieces(self.readable.iter(), offset, into.len() as u64) {
            piece.copy_to(&mut into[at..at + piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    /// Copies bytes into the writable part, from `offset` on, and marks them dirty.
    ///
    /// # Errors
    /// When the part is shorter than that.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), BadRequest> {
        if offset
            .checked_add(from.len() as u64)
            .is_none_or(|end| end > self.writable_len)
        {
            return Err(self.too_short());
        }
        let mut at = 0;
        for piece in pieces(self.writable.iter(), offset, from.len() as u64) {
            // Marks the pages dirty behind the copy.
            piece.copy_from(&from[at..at + piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    /// The readable part from `offset` on, at most `len` bytes, as vector for the kernel.
    pub fn readable_buffers(&mut self, offset: u64, len: u64) -> &[Buffer<'r>] {
        self.buffers.clear();
        self.buffers
            .extend(pieces(self.readable.iter(), offset, len).map(|piece| Buffer::from(&piece)));
        &self.buffers
    }

    /// The writable part from `offset` on, at most `len` bytes, as vector for the kernel; what was
    /// written through it must be marked by [`Chain::mark_written`] afterwards.
    pub fn writable_buffers(&mut self, offset: u64, len: u64) -> &[Buffer<'r>] {
        self.buffers.clear();
        self.buffers
            .extend(pieces(self.writable.iter(), offset, len).map(|piece| Buffer::from(&piece)));
        &self.buffers
    }

    /// The vector that was laid out last; empty before one was.
    pub(super) fn buffers(&self) -> &[Buffer<'r>] {
        &self.buffers
    }

    /// Marks bytes of the writable part as dirty; to be called after they were written.
    pub fn mark_written(&self, offset: u64, len: u64) {
        for piece in pieces(self.writable.iter(), offset, len) {
            piece.bitmap().mark_dirty(0, piece.len());
        }
    }

    /// What a device says of a request that cannot hold what it must.
    pub fn too_short(&self) -> BadRequest {
        BadRequest::TooShort {
            readable: self.readable_len,
            writable: self.writable_len,
        }
    }
}

/// The pieces of `slices` that hold the bytes from `offset` on, at most `len` of them.
pub(super) fn pieces<'s, 'r: 's, I: Iterator<Item = &'s GuestSlice<'r>>>(
    slices: I,
    offset: u64,
    len: u64,
) -> impl Iterator<Item = GuestSlice<'r>> + use<'s, 'r, I> {
    let mut skip = offset;
    let mut left = len;
    slices.filter_map(move |slice| {
        let whole = slice.len() as u64;
        let from = skip.min(whole);
        skip -= from;
        let take = (whole - from).min(left);
        left -= take;
        if take == 0 {
            return None;
        }
        // Both at most the length of the slice.
        slice.subslice(from as usize, take as usize).ok()
    })
}

/// A ring that breaks the rules, as the request that was found so.
pub(super) fn broken(error: virtio_queue::Error) -> BadRequest {
    BadRequest::Ring(error.to_string())
}
