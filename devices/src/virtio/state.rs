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

/// State of a virtio-mmio transport without the device behind it, version 2; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioStateV2 {
    /// As it was in version 1.
    pub first: MmioStateV1,
    /// Of each queue, the heads of the requests that were taken from its available ring and wait for
    /// something that has not come yet, in the order in which they are to be tried; no queue at all where
    /// there is no such request.
    pub parked: Vec<Vec<u16>>,
}

/// State of a virtio-mmio transport and the device behind it, version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStateV2 {
    /// As it was in version 1.
    #[serde(flatten)]
    pub first: TransportStateV1,
    /// See [`MmioStateV2::parked`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parked: Vec<Vec<u16>>,
}

/// Requests are parked, and version 1 has no place for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} disk requests wait for data that has not come, which version 1 cannot say")]
pub struct StillParked(pub usize);

/// Refuses what version 1 cannot say.
fn none_parked(parked: &[Vec<u16>]) -> Result<(), StillParked> {
    match parked.iter().map(Vec::len).sum() {
        0 => Ok(()),
        count => Err(StillParked(count)),
    }
}

impl From<MmioStateV1> for MmioStateV2 {
    fn from(first: MmioStateV1) -> Self {
        Self {
            first,
            parked: Vec::new(),
        }
    }
}

impl TryFrom<MmioStateV2> for MmioStateV1 {
    type Error = StillParked;

    fn try_from(MmioStateV2 { first, parked }: MmioStateV2) -> Result<Self, StillParked> {
        none_parked(&parked).map(|()| first)
    }
}

impl From<TransportStateV1> for TransportStateV2 {
    fn from(first: TransportStateV1) -> Self {
        Self {
            first,
            parked: Vec::new(),
        }
    }
}

impl TryFrom<TransportStateV2> for TransportStateV1 {
    type Error = StillParked;

    fn try_from(TransportStateV2 { first, parked }: TransportStateV2) -> Result<Self, StillParked> {
        none_parked(&parked).map(|()| first)
    }
}

impl TransportStateV2 {
    /// The transport and the device, each of which can get another version without the other.
    pub fn split(self) -> (MmioStateV2, DeviceStateV1) {
        let Self {
            first:
                TransportStateV1 {
                    device_id,
                    device_features_sel,
                    driver_features_sel,
                    driver_features,
                    queue_sel,
                    status,
                    interrupt_status,
                    queues,
                    device,
                },
            parked,
        } = self;
        let first = MmioStateV1 {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
        };
        (MmioStateV2 { first, parked }, device)
    }

    /// Undoes [`TransportStateV2::split`].
    pub fn join(transport: MmioStateV2, device: DeviceStateV1) -> Self {
        let MmioStateV2 {
            first:
                MmioStateV1 {
                    device_id,
                    device_features_sel,
                    driver_features_sel,
                    driver_features,
                    queue_sel,
                    status,
                    interrupt_status,
                    queues,
                },
            parked,
        } = transport;
        let first = TransportStateV1 {
            device_id,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            status,
            interrupt_status,
            queues,
            device,
        };
        Self { first, parked }
    }
}
