//! Buffers that the driver made available for what a device has to say without being asked, such as packets that
//! arrive.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use block::Buffer;
use migration::GuestRam;
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use super::chain::{BadRequest, GuestSlice, pieces};

/// Most pieces of memory that the kernel takes at once (`UIO_MAXIOV`), less one for what is too long.
const MOST_PIECES: usize = 1023;

/// How much room a packet may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// One chain, however long: what does not fit is lost.
    OneChain,
    /// So many bytes, in as many chains as it takes.
    Bytes(u64),
}

/// What came of asking for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes were put into the available memory, from its start on.
    Packet(u64),
    /// A packet came that is not for the guest, or does not fit; the memory stays available.
    Dropped,
}

/// What fills the buffers of a queue.
pub trait Packets {
    /// A file that is readable while packets wait.
    fn waiting(&self) -> BorrowedFd<'_>;

    /// Fewest bytes that a chain must have.
    fn header(&self) -> u64;

    /// Room that has to be there before a packet is taken.
    fn room(&self) -> Room;

    /// Puts the next packet into the available memory.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none waits; [`io::ErrorKind::NotConnected`] when the queue
    /// takes no part and the device will wake it when it does; anything else when none can be had.
    fn receive(&self, available: &mut AvailableBuffers<'_>) -> io::Result<Received>;
}

/// A chain of the available ring.
#[derive(Debug, Clone, Copy)]
struct AvailableChain {
    head: u16,
    slices: usize,
    len: u64,
}

/// Buffers taken from the available ring and not yet filled, in their order.
///
/// Kept by a queue's thread from packet to packet, so that taking one allocates nothing.
#[derive(Debug, Default)]
pub struct AvailableBuffers<'r> {
    chains: VecDeque<AvailableChain>,
    slices: VecDeque<GuestSlice<'r>>,
    buffers: Vec<Buffer<'r>>,
    len: u64,
}

/// Where the part of a packet goes that does not fit; its content is never looked at.
fn overflow() -> Buffer<'static> {
    static BYTE: OnceLock<Buffer<'static>> = OnceLock::new();
    *BYTE.get_or_init(|| Buffer::new(Box::leak(Box::new([0]))))
}

impl<'r> AvailableBuffers<'r> {
    /// Nothing is available.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Number of chains.
    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Whether nothing is available.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Bytes that are available.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is enough for a packet.
    pub(super) fn is_enough(&self, room: Room) -> bool {
        match room {
            Room::OneChain => !self.is_empty(),
            Room::Bytes(bytes) => self.len >= bytes || self.slices.len() >= MOST_PIECES,
        }
    }

    /// Forgets what is available; how many chains go back to the ring.
    pub(super) fn give_back(&mut self) -> usize {
        let chains = self.chains.len();
        self.chains.clear();
        self.slices.clear();
        self.len = 0;
        chains
    }

    /// Takes the chain at `head`, of at most `limit` descriptors and at least `least` bytes.
    pub(super) fn take(
        &mut self,
        ram: &'r GuestRam,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        limit: usize,
        least: u64,
    ) -> Result<(), BadRequest> {
        let before = self.slices.len();
        let mut total = 0;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= limit {
                return Err(BadRequest::TooManyDescriptors { limit });
            }
            let (addr, len) = (descriptor.addr(), descriptor.len());
            if !descriptor.is_write_only() {
                return Err(BadRequest::NotWritable { addr: addr.0, len });
            }
            for slice in ram.get_slices(addr, len as usize) {
                let slice = slice.map_err(|_| BadRequest::NotInRam { addr: addr.0, len })?;
                self.slices.push_back(slice);
            }
            total += u64::from(len);
        }
        if total < least {
            return Err(BadRequest::TooShort {
                readable: 0,
                writable: total,
            });
        }
        self.chains.push_back(AvailableChain {
            head,
            slices: self.slices.len() - before,
            len: total,
        });
        self.len += total;
        Ok(())
    }

    /// The available memory as a vector for the kernel, with its length; one more byte follows, so that a
    /// packet which is too long is told from one that just fits. What was written through it must be
    /// marked by [`AvailableBuffers::mark_written`].
    pub fn buffers(&mut self) -> (&[Buffer<'r>], u64) {
        self.buffers.clear();
        self.buffers
            .extend(self.slices.iter().take(MOST_PIECES).map(Buffer::from));
        let len = Buffer::total_len(&self.buffers);
        self.buffers.push(overflow());
        (&self.buffers, len)
    }

    /// Marks bytes from the start on as dirty; to be called after they were written.
    pub fn mark_written(&self, len: u64) {
        for piece in pieces(self.slices.iter(), 0, len) {
            piece.bitmap().mark_dirty(0, piece.len());
        }
    }

    /// Copies what was written, from `offset` on.
    ///
    /// # Errors
    /// When there is less than that.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), BadRequest> {
        self.check(offset, into.len())?;
        let mut at = 0;
        for piece in pieces(self.slices.iter(), offset, into.len() as u64) {
            piece.copy_to(&mut into[at..at + piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    /// Copies bytes into the available memory, from `offset` on, and marks them dirty.
    ///
    /// # Errors
    /// When there is less than that.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), BadRequest> {
        self.check(offset, from.len())?;
        let mut at = 0;
        for piece in pieces(self.slices.iter(), offset, from.len() as u64) {
            // Marks the pages dirty behind the copy.
            piece.copy_from(&from[at..at + piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), BadRequest> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(BadRequest::TooShort {
                readable: 0,
                writable: self.len,
            });
        }
        Ok(())
    }

    /// How many chains a packet of `len` bytes takes; at least one.
    pub fn chains_for(&self, len: u64) -> u16 {
        let mut room = 0;
        let full = self.chains.iter().take_while(|chain| {
            room += chain.len;
            room < len
        });
        // At most the size of a queue.
        u16::try_from(full.count() + 1).unwrap_or(u16::MAX)
    }

    /// Takes out the chains that a packet of `len` bytes has filled: their heads, with the bytes in
    /// each.
    pub(super) fn filled(&mut self, len: u64) -> impl ExactSizeIterator<Item = (u16, u32)> + '_ {
        let count = usize::from(self.chains_for(len)).min(self.chains.len());
        let slices: usize = self.chains.iter().take(count).map(|c| c.slices).sum();
        self.slices.drain(..slices);
        let total = &mut self.len;
        let mut left = len;
        self.chains.drain(..count).map(move |chain| {
            *total -= chain.len;
            let bytes = left.min(chain.len);
            left -= bytes;
            (chain.head, u32::try_from(bytes).unwrap_or(u32::MAX))
        })
    }
}
