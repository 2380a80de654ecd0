//! The registers of the transport that only the driver changes.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use super::unfinished::Unfinished;

/// Every bit of Status that has a meaning.
pub(super) const STATUS_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_NEEDS_RESET
    | VIRTIO_CONFIG_S_FAILED;

/// Registers that only the driver changes, and that no queue's thread reads.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u32,
    /// Which queues are in use. The queue knows it too, but its thread keeps it for as long as a request
    /// takes.
    pub(super) ready: Vec<bool>,
    pub(super) unfinished: Unfinished,
}

impl Registers {
    /// Those of a device with so many queues that was reset.
    pub(super) fn new(queues: usize) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            ready: vec![false; queues],
            unfinished: Unfinished::default(),
        }
    }

    /// Index of the queue that is selected, if there is one.
    pub(super) fn selected(&self) -> Option<usize> {
        let index = usize::try_from(self.queue_sel).ok()?;
        (index < self.ready.len()).then_some(index)
    }
}
