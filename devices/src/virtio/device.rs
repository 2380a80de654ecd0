//! What a device behind the transport is: it knows requests, not rings, and nothing of the transport.

use super::available::Packets;
use super::chain::{BadRequest, Chain};
use super::disk_requests::DiskRequests;
use super::notify::{ConfigNotifier, QueueWaker};
use super::state::DeviceStateV1;
use crate::Result;

/// Kinds of virtio devices (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Disk.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
    /// Network interface.
    Net,
}

impl DeviceKind {
    /// The device id that the driver sees.
    pub const fn id(self) -> u32 {
        use virtio_bindings::virtio_ids::{
            VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_RNG,
        };
        match self {
            Self::Block => VIRTIO_ID_BLOCK,
            Self::Console => VIRTIO_ID_CONSOLE,
            Self::Rng => VIRTIO_ID_RNG,
            Self::Net => VIRTIO_ID_NET,
        }
    }

    /// For messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "virtio-block",
            Self::Console => "virtio-console",
            Self::Rng => "virtio-rng",
            Self::Net => "virtio-net",
        }
    }
}

/// A device behind the transport. Calls come from the queues' threads, one per queue at a time, and
/// from vCPU threads for the configuration.
pub trait VirtioDevice: Send + Sync {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// Features of the device itself; the transport adds its own (`VERSION_1`, `EVENT_IDX`,
    /// `INDIRECT_DESC`).
    fn features(&self) -> u64;

    /// Most entries of each queue, powers of two; a request has at most as many descriptors.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; bytes outside it read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Receives the wakers of its queues, once, before anything else.
    fn attach(&self, wakers: Vec<QueueWaker>) {
        drop(wakers);
    }

    /// Receives the way to tell of a changed configuration, once, before anything else.
    fn attach_config(&self, notifier: ConfigNotifier) {
        drop(notifier);
    }

    /// What fills the buffers of `queue`, if that is one whose buffers the device fills by itself; its
    /// requests are not given to [`VirtioDevice::process`] then.
    fn packets(&self, queue: usize, features: u64) -> Option<&dyn Packets> {
        let (_any, _all) = (queue, features);
        None
    }

    /// What makes of requests what a disk is to do, if this device has all of its requests carried out by one;
    /// none is given to [`VirtioDevice::process`] then.
    fn disk_requests(&self) -> Option<&dyn DiskRequests> {
        None
    }

    /// A driver that accepted `features` is about to start.
    fn started(&self, features: u64) {
        let _all = features;
    }

    /// The device was loaded, and its driver had accepted `features` and started elsewhere.
    fn took_over(&self, features: u64) {
        let _all = features;
    }

    /// Requests are about to be processed, for the first time or after a pause.
    ///
    /// # Errors
    /// When the device cannot do its work.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }

    /// No request is processed from here on, until the device goes on.
    fn quiesce(&self) {}

    /// Whether a request of `queue` could be processed now; if not, it stays in the queue until the
    /// device wakes it.
    fn has_work(&self, queue: usize) -> bool {
        let _any = queue;
        true
    }

    /// Processes one request of a queue that is served in no other way; the number of bytes written to the
    /// guest's memory.
    ///
    /// # Errors
    /// When the request is not even well-formed enough to be refused in its status.
    fn process(
        &self,
        queue: usize,
        chain: &mut Chain<'_>,
        features: u64,
    ) -> std::result::Result<u32, BadRequest> {
        let (_any, _memory, _all) = (queue, chain, features);
        Ok(0)
    }

    /// Makes durable what the guest was told is done. Called when no request is in flight, and from
    /// time to time before, so that there is less to do then.
    ///
    /// # Errors
    /// When durability is not confirmed.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Whether [`VirtioDevice::flush`] may have anything to do; answers at once.
    fn has_unflushed_writes(&self) -> bool {
        false
    }

    /// The storage behind it, which may take without end for what it is asked.
    fn storage(&self) -> Option<String> {
        None
    }

    /// The driver has reset the device.
    fn reset(&self) {}

    /// State of the device itself, while no request is in flight.
    fn save(&self) -> DeviceStateV1;

    /// Takes the state over; changes nothing when it does not fit.
    ///
    /// # Errors
    /// When the state is of another kind of device, or does not fit this one.
    fn load(&self, state: DeviceStateV1) -> Result<()>;
}

/// Answers a read of a configuration space; bytes behind its end stay as they are.
pub(super) fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..));
    if let Some(rest) = rest {
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }
}
