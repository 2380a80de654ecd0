//! The virtio-mmio transport (virtio 1.2, section 4.2), without the legacy interface: what a driver reads
//! and writes of its registers.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::queue;
use super::registers::{Registers, STATUS_BITS};
pub use super::transport::MmioTransport;
use super::unfinished::Change;
use crate::bus::BusDevice;
use crate::locked::locked;

/// Bytes of MMIO space that a device takes.
pub const MMIO_LEN: u64 = 0x1000;
/// Offset of QueueNotify, for `KVM_IOEVENTFD` with the queue's index as datamatch (32 bits).
pub const QUEUE_NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// `virt` in ASCII.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// `vmm` in ASCII.
const VENDOR: u32 = 0x006d_6d76;

impl MmioTransport {
    fn read_register(&self, offset: u32) -> u32 {
        let mut registers = locked(&self.registers);
        self.finish(&mut registers);
        let shared = &self.shared;
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => shared.kind.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.features as u32,
                1 => (self.features >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                let size = |index: usize| shared.device.queue_sizes().get(index).copied();
                registers.selected().and_then(size).map_or(0, u32::from)
            }
            VIRTIO_MMIO_QUEUE_READY => {
                let ready = |index: usize| registers.ready[index];
                registers.selected().map_or(0, |index| ready(index).into())
            }
            VIRTIO_MMIO_INTERRUPT_STATUS => shared.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.shown_status(&registers),
            // There is no shared memory region, of whatever id.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => shared.config_generation.load(Ordering::SeqCst),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        // First, and without a lock: the only register that is written often.
        if offset == VIRTIO_MMIO_QUEUE_NOTIFY {
            if let Ok(queue) = usize::try_from(value) {
                self.shared.kick(queue);
            }
            return;
        }
        let registers = &mut *locked(&self.registers);
        self.finish(registers);
        if registers.unfinished.is_reset()
            && !matches!(offset, VIRTIO_MMIO_STATUS | VIRTIO_MMIO_INTERRUPT_ACK)
        {
            self.shared.complain(&"it goes on before its reset is done");
            return;
        }
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(registers, value),
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared
                    .interrupt_status
                    .fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.write_status(registers, value),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(registers, value),
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => {
                if let Some(index) = registers
                    .selected()
                    .filter(|&index| !registers.ready[index])
                {
                    let ring = &mut *locked(&self.shared.rings[index]);
                    queue::set_up(&mut ring.queue, offset, value);
                }
            }
            _ => {}
        }
    }

    fn write_driver_features(&self, registers: &Registers, value: u32) {
        let status = self.shared.status.load(Ordering::SeqCst);
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            self.shared
                .complain(&"features changed after they were agreed on");
            return;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let features = self.shared.driver_features.load(Ordering::SeqCst);
        let features = (features & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        self.shared
            .driver_features
            .store(features, Ordering::SeqCst);
    }

    fn write_queue_ready(&self, registers: &mut Registers, value: u32) {
        let Some(index) = registers.selected() else {
            return;
        };
        match (registers.ready[index], value == 1) {
            (true, true) => {}
            (true, false) => self.change(registers, Change::StopQueue(index)),
            (false, false) => {
                locked(&self.shared.rings[index]).stop();
            }
            (false, true) => {
                let queue = &mut locked(&self.shared.rings[index]).queue;
                queue.set_ready(true);
                let usable = queue::is_usable(queue, &self.shared.ram);
                queue.set_ready(usable);
                registers.ready[index] = usable;
                if !usable {
                    self.shared
                        .need_reset(&"rings of a queue are not in guest memory");
                }
            }
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.change(registers, Change::Reset);
            return;
        }
        if registers.unfinished.is_reset() {
            self.shared.complain(&"it goes on before its reset is done");
            return;
        }
        let shared = &self.shared;
        let before = shared.status.load(Ordering::SeqCst);
        // A driver cannot take back what it said, nor say what the device says.
        let mut new = value & STATUS_BITS & !VIRTIO_CONFIG_S_NEEDS_RESET & !before;
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let features = shared.driver_features.load(Ordering::SeqCst);
            let version_1 = features & (1 << VIRTIO_F_VERSION_1) != 0;
            if version_1 && features & !self.features == 0 {
                let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
                for ring in &shared.rings {
                    locked(ring).queue.set_event_idx(event_idx);
                }
            } else {
                // The driver reads the status back, and sees that the bit did not stay.
                new &= !VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 && (before | new) & VIRTIO_CONFIG_S_FEATURES_OK == 0
        {
            shared.complain(&"driver starts without agreed features");
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            let features = shared.driver_features.load(Ordering::SeqCst);
            shared.device.started(features);
        }
        shared.status.fetch_or(new, Ordering::SeqCst);
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            // What was notified before was not processed.
            shared.kick_all();
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.shared.device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            // Below the configuration space.
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // No device has configuration that a driver may write.
        if offset < u64::from(VIRTIO_MMIO_CONFIG)
            && offset.is_multiple_of(4)
            && let Ok(data) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}
