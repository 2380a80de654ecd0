//! Virtio devices over MMIO (virtio 1.2): the transport, and the devices behind it.
//!
//! A device is a [`VirtioDevice`]: it knows requests, not rings. The [`MmioTransport`] owns the rings
//! and one thread per queue, which hands the device one request at a time and completes it. A disk's
//! thread submits them, and they are completed in any order (see [`DiskRequests`]).

mod announcer;
pub mod available;
mod awaited;
mod away;
mod backing;
pub mod block;
pub mod chain;
mod change;
pub mod console;
mod descriptors;
mod device;
mod disk_requests;
mod fill;
mod flusher;
mod gate;
pub mod mmio;
pub mod net;
mod notify;
mod parked;
mod pause;
mod pivot;
mod poll;
mod queue;
mod registers;
mod ring;
pub mod rng;
mod save;
mod shared;
mod stand_in;
pub mod state;
mod submit;
mod taken;
mod transport;
mod unfinished;
mod wait;
mod worker;

pub use available::{AvailableBuffers, Packets};
pub use backing::Backing;
pub use block::{Block, BlockConfig};
pub use chain::{BadRequest, Chain};
pub use console::{Console, ConsoleEnd};
pub use device::{DeviceKind, VirtioDevice};
pub use disk_requests::{Asked, DiskRequests, Next};
pub use mmio::MMIO_LEN;
pub use net::{Net, NetConfig, NetPort};
pub use notify::{ConfigNotifier, QueueWaker};
pub use pause::{PATIENCE as PAUSE_PATIENCE, drain_within, flush_within, pause_within};
pub use pivot::Handover;
pub use rng::Rng;
pub use state::{
    DeviceStateV1, MmioStateV1, MmioStateV2, QueueStateV1, TransportStateV1, TransportStateV2,
};
pub use transport::MmioTransport;
