//! Memory that a request reads or fills.
#![allow(unsafe_code)] // A buffer is an iovec: guest memory has no Rust reference, only an address.

use std::marker::PhantomData;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// A piece of memory that a request reads from or writes to, as the kernel wants it in a vector.
///
/// The memory may be the guest's and change at any moment. A buffer carries no dirty bitmap: whoever
/// fills guest memory through it marks the pages afterwards.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Buffer<'a> {
    iovec: libc::iovec,
    memory: PhantomData<VolatileSlice<'a>>,
}

// SAFETY: a buffer is an address and a length of memory that any thread may access (guest memory, or
// memory that is exclusively borrowed for 'a); accesses go through volatile copies or the kernel.
unsafe impl Send for Buffer<'_> {}
// SAFETY: as above; a shared buffer gives no reference into the memory.
unsafe impl Sync for Buffer<'_> {}

impl<'a> Buffer<'a> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.iovec.iov_len == 0
    }

    /// The memory, for volatile copies.
    pub fn as_volatile(&self) -> VolatileSlice<'a> {
        // SAFETY: every constructor had memory of this length that lives for 'a.
        unsafe { VolatileSlice::new(self.iovec.iov_base.cast(), self.iovec.iov_len) }
    }

    /// The part from byte `offset` on; empty when `offset` is at or beyond the end.
    #[must_use]
    pub fn skip(&self, offset: usize) -> Self {
        let offset = offset.min(self.len());
        Self {
            iovec: libc::iovec {
                // SAFETY: offset is at most the length, so that the address stays in the memory or
                // one byte behind it.
                iov_base: unsafe { self.iovec.iov_base.byte_add(offset) },
                iov_len: self.len() - offset,
            },
            memory: PhantomData,
        }
    }

    /// The first `len` bytes; all of it when it is shorter.
    #[must_use]
    pub fn take(&self, len: usize) -> Self {
        Self {
            iovec: libc::iovec {
                iov_base: self.iovec.iov_base,
                iov_len: self.len().min(len),
            },
            memory: PhantomData,
        }
    }

    /// Memory of this process that a request may fill, and read.
    pub fn new(memory: &'a mut [u8]) -> Self {
        Self::from(&VolatileSlice::from(memory))
    }

    /// A copy of what `buffers` hold, in order, as it is at one time or another while this is called.
    pub fn copied(buffers: &[Self]) -> Vec<u8> {
        let len = buffers.iter().map(Self::len).sum();
        let mut bytes = vec![0; len];
        let mut rest = &mut bytes[..];
        for buffer in buffers {
            let (part, behind) = rest.split_at_mut(buffer.len());
            buffer.as_volatile().copy_to(part);
            rest = behind;
        }
        bytes
    }

    /// The buffers as the kernel's vector, for whoever hands it to a system call of its own.
    pub fn as_iovecs(buffers: &[Self]) -> &[libc::iovec] {
        // SAFETY: the type is transparent over iovec, so that slices of both have one layout.
        unsafe { std::slice::from_raw_parts(buffers.as_ptr().cast(), buffers.len()) }
    }

    /// Bytes in all `buffers`.
    pub fn total_len(buffers: &[Self]) -> u64 {
        buffers.iter().map(|buffer| buffer.len() as u64).sum()
    }
}

impl<'a, B: BitmapSlice> From<&VolatileSlice<'a, B>> for Buffer<'a> {
    fn from(slice: &VolatileSlice<'a, B>) -> Self {
        Self {
            iovec: libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            },
            memory: PhantomData,
        }
    }
}

impl std::fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}
