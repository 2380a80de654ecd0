//! virtio-mmio (version 2) with split queues, polled: bringing a device up, and driving one queue with
//! one request at a time. `ring.rs` drives one with many.

use core::sync::atomic::{Ordering, fence};

use crate::clock::{peek, poke};

/// Descriptors of a queue that is used for one request at a time.
const SIZE: u16 = 4;
/// Where the rings of a queue lie in its page.
pub const AVAILABLE: u64 = 1024;
pub const USED: u64 = 2048;

pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;
pub const CONSOLE: u32 = 3;
pub const RNG: u32 = 4;

#[repr(C, align(4096))]
pub struct QueueMemory {
    bytes: [u8; 4096],
}

impl QueueMemory {
    pub const NEW: Self = Self { bytes: [0; 4096] };
}

/// One buffer of a request.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub device_writes: bool,
}

/// A device with one queue of which one request at a time is used.
pub struct Device {
    base: u64,
    queue: u32,
    memory: u64,
    submitted: u16,
}

/// Device type behind a window; `None` when there is none that we can drive.
pub fn probe(base: u64) -> Option<u32> {
    let ours = peek::<u32>(base) == 0x7472_6976 && peek::<u32>(base + 4) == 2;
    ours.then(|| peek::<u32>(base + 8)).filter(|&id| id != 0)
}

/// Resets the device and agrees on VERSION_1 and those of `features` (of the low 32) that it offers;
/// these, or `None` when it refuses.
pub fn begin(base: u64, features: u32) -> Option<u32> {
    let status = |value: u32| poke(base + 0x70, value);
    status(0);
    while peek::<u32>(base + 0x70) != 0 {}
    status(1);
    status(3);
    poke(base + 0x14, 1u32);
    if peek::<u32>(base + 0x10) & 1 == 0 {
        return None;
    }
    poke(base + 0x14, 0u32);
    let features = peek::<u32>(base + 0x10) & features;
    poke(base + 0x24, 0u32);
    poke(base + 0x20, features);
    poke(base + 0x24, 1u32);
    poke(base + 0x20, 1u32);
    status(0xb);
    (peek::<u32>(base + 0x70) & 8 != 0).then_some(features)
}

/// Sets up a queue of `size` entries, at most 64, in a page of memory: descriptors, then the available
/// ring, then the used ring.
pub fn set_up(base: u64, queue: u32, size: u16, memory: u64) -> Option<()> {
    if offered(base, queue) < u32::from(size) {
        return None;
    }
    enable(base, size, [memory, memory + AVAILABLE, memory + USED]);
    Some(())
}

/// Selects a queue; most entries that it can have, 0 when there is none.
pub fn offered(base: u64, queue: u32) -> u32 {
    poke(base + 0x30, queue);
    peek(base + 0x34)
}

/// Gives the selected queue its size and its descriptors, available ring and used ring.
pub fn enable(base: u64, size: u16, parts: [u64; 3]) {
    poke(base + 0x38, u32::from(size));
    for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
        poke(base + register, address as u32);
        poke(base + register + 4, (address >> 32) as u32);
    }
    // We poll: no interrupts (VIRTQ_AVAIL_F_NO_INTERRUPT).
    poke(parts[1], 1u16);
    poke(base + 0x44, 1u32);
}

/// Writes the descriptors of a request one behind the other, from number `first` of the table on.
pub fn describe(table: u64, first: u16, buffers: &[Buffer]) {
    for (i, buffer) in (first..).zip(buffers) {
        let descriptor = table + u64::from(i) * 16;
        let more = usize::from(i - first) + 1 < buffers.len();
        poke(descriptor, buffer.address);
        poke(descriptor + 8, buffer.len);
        poke(
            descriptor + 12,
            u16::from(more) | u16::from(buffer.device_writes) << 1,
        );
        poke(descriptor + 14, i + 1);
    }
}

/// A 64-bit field of the configuration space.
pub fn config_u64(base: u64, offset: u64) -> u64 {
    let at = base + 0x100 + offset;
    u64::from(peek::<u32>(at)) | u64::from(peek::<u32>(at + 4)) << 32
}

/// The driver is ready.
pub fn go(base: u64) {
    poke(base + 0x70, 0xfu32);
}

impl Device {
    /// Brings the device up with VERSION_1 and those of `features` (of the low 32) that it offers.
    /// `None` when it refuses.
    pub fn new(base: u64, queue: u32, memory: *mut QueueMemory, features: u32) -> Option<Self> {
        let memory = memory as u64;
        begin(base, features)?;
        set_up(base, queue, SIZE, memory)?;
        go(base);
        Some(Self {
            base,
            queue,
            memory,
            submitted: 0,
        })
    }

    /// A 64-bit field of the configuration space.
    pub fn config_u64(&self, offset: u64) -> u64 {
        config_u64(self.base, offset)
    }

    /// Hands over a request of at most four buffers; only when none is under way.
    pub fn submit(&mut self, buffers: &[Buffer]) {
        describe(self.memory, 0, buffers);
        let slot = u64::from(self.submitted % SIZE);
        poke(self.memory + AVAILABLE + 4 + slot * 2, 0u16);
        fence(Ordering::SeqCst);
        self.submitted = self.submitted.wrapping_add(1);
        poke(self.memory + AVAILABLE + 2, self.submitted);
        fence(Ordering::SeqCst);
        poke(self.base + 0x50, self.queue);
    }

    /// Bytes that the device wrote, once the request is done.
    pub fn completed(&self) -> Option<u32> {
        if peek::<u16>(self.memory + USED + 2) != self.submitted {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = u64::from(self.submitted.wrapping_sub(1) % SIZE);
        Some(peek(self.memory + USED + 4 + slot * 8 + 4))
    }
}
