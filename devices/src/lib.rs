//! Guest-facing devices: buses, legacy devices and virtio over MMIO.
