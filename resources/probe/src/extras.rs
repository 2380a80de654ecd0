//! virtio-rng, read once, and virtio-console, which gets a copy of every line.

use crate::serial::Serial;
use crate::virtio::{Buffer, Device, QueueMemory};

static mut RNG_QUEUE: QueueMemory = QueueMemory::NEW;
static mut CONSOLE_QUEUE: QueueMemory = QueueMemory::NEW;
static mut RNG_BYTES: [u64; 4] = [0; 4];
static mut CONSOLE_BYTES: [u8; 512] = [0; 512];

pub struct Rng(Device);

impl Rng {
    pub fn new(base: u64) -> Option<Self> {
        let mut device = Device::new(base, 0, &raw mut RNG_QUEUE, 0)?;
        let address = &raw const RNG_BYTES as u64;
        device.submit(&[Buffer {
            address,
            len: 32,
            device_writes: true,
        }]);
        Some(Self(device))
    }

    /// Prints what came; true when it is done with.
    pub fn poll(&self, out: &mut Serial) -> bool {
        let Some(bytes) = self.0.completed() else {
            return false;
        };
        // SAFETY: the device is done with the buffer.
        let words = unsafe { (&raw const RNG_BYTES).read_volatile() };
        out.line(format_args!(
            "rng bytes={bytes} first={:#x} last={:#x}",
            words[0], words[3]
        ));
        true
    }
}

pub struct Console {
    device: Device,
    started: bool,
}

impl Console {
    /// The transmit queue of port 0; MULTIPORT is not asked for.
    pub fn new(base: u64) -> Option<Self> {
        let device = Device::new(base, 1, &raw mut CONSOLE_QUEUE, 0)?;
        Some(Self {
            device,
            started: false,
        })
    }

    pub fn poll(&mut self, out: &mut Serial) {
        if self.started && self.device.completed().is_none() {
            return;
        }
        // SAFETY: the device is done with the buffer, and only CPU 0 comes here.
        let buffer = unsafe { &mut *(&raw mut CONSOLE_BYTES) };
        let len = out.take_for_console(buffer);
        if len > 0 {
            let address = buffer.as_ptr() as u64;
            self.device.submit(&[Buffer {
                address,
                len: len as u32,
                device_writes: false,
            }]);
            self.started = true;
        }
    }
}
