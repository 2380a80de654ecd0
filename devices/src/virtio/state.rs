//! Saved state of the transport and its queues.

use serde::{Deserialize, Serialize};

use super::block::state::BlockStateV1;
use super::console::state::ConsoleStateV1;
use super::net::state::NetStateV1;
use super::rng::state::RngStateV1;

/// State of a queue, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStateV1 {
    /// Most entries that the device offers.
    pub max_size: u16,
    /// Entries that the driver chose.
    pub size: u16,
    /// The driver has set the queue up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Next entry of the available ring to be taken.
    pub next_avail: u16,
    /// Next entry of the used ring to be filled.
    pub next_used: u16,
}

/// State of a device itself, version 1; frozen, new devices are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceStateV1 {
    /// Disk.
    Block(BlockStateV1),
    /// Console.
    Console(ConsoleStateV1),
    /// Entropy source.
    Rng(RngStateV1),
    /// Network interface.
    Net(NetStateV1),
}

/// State of a virtio-mmio transport without the device behind it, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioStateV1 {
    /// Device id (virtio 1.2, section 5).
    pub device_id: u32,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// Status.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// All queues of the device.
    pub queues: Vec<QueueStateV1>,
}

/// State of a virtio-mmio transport and the device behind it, version 1; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStateV1 {
    /// Device id (virtio 1.2, section 5).
    pub device_id: u32,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// Status.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// All queues of the device.
    pub queues: Vec<QueueStateV1>,
    /// The device itself.
    pub device: DeviceStateV1,
}

impl TransportStateV1 {
    /// The transport and the device, each of which can get another version without the other.
    pub fn split(self) -> (MmioStateV1, DeviceStateV1) {
        let Self {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
            device,
        } = self;
        let transport = MmioStateV1 {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
        };
        (transport, device)
    }

    /// Undoes [`TransportStateV1::split`].
    pub fn join(transport: MmioStateV1, device: DeviceStateV1) -> Self {
        let MmioStateV1 {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
        } = transport;
        Self {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
            device,
        }
    }
}
