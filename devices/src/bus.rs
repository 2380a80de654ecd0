//! A bus: which device answers at which address.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// A device as the bus sees it: offsets, never addresses, reach it.
///
/// Calls come from vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// Answers a read of `data.len()` bytes at `offset` within the device.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes a write of `data` at `offset` within the device.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Slot {
    base: u64,
    /// Last address, inclusive.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address; built once, then shared, so that a vCPU looks up without a lock.
#[derive(Default)]
pub struct Bus {
    /// Ascending by address, without overlap.
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `len` addresses from `base` on.
    ///
    /// # Errors
    /// When another device answers at one of them, or there are no such addresses.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<()> {
        let last = len
            .checked_sub(1)
            .and_then(|below| base.checked_add(below))
            .ok_or(Error::BadRange { base, len })?;
        let place = self.slots.partition_point(|slot| slot.last < base);
        if let Some(slot) = self.slots.get(place)
            && slot.base <= last
        {
            return Err(Error::Overlap {
                base,
                len,
                other: slot.base,
            });
        }
        self.slots.insert(place, Slot { base, last, device });
        Ok(())
    }

    /// Reads at `addr`; all ones, and `false`, when no device answers.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes at `addr`; `false` when no device answers.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    /// The device that answers at all `len` addresses from `addr` on, and the offset in it.
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let end = addr.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let slot = self
            .slots
            .get(self.slots.partition_point(|slot| slot.last < addr))?;
        (slot.base <= addr && end <= slot.last).then(|| (&*slot.device, addr - slot.base))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.slots
                    .iter()
                    .map(|slot| format!("{:#x}..={:#x}", slot.base, slot.last)),
            )
            .finish()
    }
}
