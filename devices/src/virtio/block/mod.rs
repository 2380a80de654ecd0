//! The virtio disk (virtio 1.2, 5.2).

mod config;
mod requests;
mod ring;
pub(super) mod state;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use block::{Backend, BlockDevice, Pool, RawImage, RingDisk, SECTOR_SIZE};
use virtio_bindings::virtio_blk::*;

use super::backing::Backing;
use super::device::read_config_space;
use super::disk_requests::DiskRequests;
use super::{DeviceKind, DeviceStateV1, VirtioDevice};
use crate::threads::{self, ThreadKind};
use crate::{Error, Result};
use config::{LEN, QUEUE_SIZE, config_space};

pub use state::BlockStateV1;

/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;

/// Bytes of a serial id.
const ID: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Failed requests that are logged; a guest can cause any number.
const MOST_COMPLAINTS: u32 = 16;

/// What a disk is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockConfig {
    /// Serial id that the guest sees, cut to 20 bytes.
    pub serial: String,
    /// Queues, 1 to [`MAX_QUEUES`] (others become the nearest); as many as vCPUs is a good choice.
    pub queues: u16,
}

/// A disk: multi-queue, with flush, discard and write-zeroes.
pub struct Block {
    backing: Backing,
    serial: String,
    queue_sizes: Vec<u16>,
    config: [u8; LEN],
    complaints: AtomicU32,
}

impl Block {
    /// A disk whose requests `backend` carries out.
    pub fn new(backend: Arc<dyn Backend>, config: BlockConfig) -> Self {
        let BlockConfig { mut serial, queues } = config;
        while serial.len() > ID {
            serial.pop();
        }
        let queues = queues.clamp(1, MAX_QUEUES);
        Self {
            config: config_space(backend.disk().size() / SECTOR_SIZE, queues),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            backing: Backing::new(backend),
            serial,
            complaints: AtomicU32::new(0),
        }
    }

    /// A disk whose bytes are those of `disk`, with threads that carry its requests out.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn over(disk: Arc<dyn BlockDevice>, config: BlockConfig) -> Result<Self> {
        Ok(Self::new(Self::backend_over(disk)?, config))
    }

    /// The ring of a raw image, by which [`block::Uring`] carries out its requests past the page cache: to be made before
    /// the guest begins, and kept. None where this host has none, which is said once in the log.
    ///
    /// # Errors
    /// When the image cannot be used past the page cache, or its threads cannot be started.
    pub fn ring_of(image: &Arc<RawImage>) -> Result<Option<Arc<RingDisk>>> {
        ring::of(image).map_err(|source| Error::Disk { source })
    }

    /// What carries out the requests to `disk`, for a new device or a [pivot](super::MmioTransport::pivot).
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn backend_over(disk: Arc<dyn BlockDevice>) -> Result<Arc<dyn Backend>> {
        let pool = Pool::new(disk, || threads::begin(ThreadKind::Disk));
        let pool = pool.map_err(|source| Error::Disk { source })?;
        Ok(Arc::new(pool))
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let common = (1 << VIRTIO_BLK_F_SIZE_MAX)
            | (1 << VIRTIO_BLK_F_SEG_MAX)
            | (1 << VIRTIO_BLK_F_BLK_SIZE)
            | (1 << VIRTIO_BLK_F_FLUSH)
            | (1 << VIRTIO_BLK_F_MQ);
        common
            | if self.backing.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                (1 << VIRTIO_BLK_F_DISCARD) | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn disk_requests(&self) -> Option<&dyn DiskRequests> {
        Some(self)
    }

    fn has_unflushed_writes(&self) -> bool {
        self.backing.current().disk().has_unflushed_writes()
    }

    fn flush(&self) -> Result<()> {
        let backend = self.backing.current();
        backend.disk().flush().map_err(|source| Error::Flush {
            disk: backend.disk().identity().to_string(),
            source,
        })
    }

    fn storage(&self) -> Option<String> {
        Some(format!("disk {}", self.backing.current().disk().identity()))
    }

    fn save(&self) -> DeviceStateV1 {
        DeviceStateV1::Block(BlockStateV1 {
            capacity_sectors: self.backing.size() / SECTOR_SIZE,
            serial: self.serial.clone(),
            read_only: self.backing.read_only(),
        })
    }

    fn load(&self, state: DeviceStateV1) -> Result<()> {
        let bad = |reason: String| Error::BadState {
            device: DeviceKind::Block.name(),
            reason,
        };
        let DeviceStateV1::Block(BlockStateV1 {
            capacity_sectors,
            serial,
            read_only,
        }) = state
        else {
            return Err(bad("it is of another kind of device".into()));
        };
        let sectors = self.backing.size() / SECTOR_SIZE;
        if capacity_sectors != sectors {
            let backend = self.backing.current();
            let disk = backend.disk().identity();
            return Err(bad(format!(
                "the guest's disk has {capacity_sectors} sectors, and {disk} has {sectors}"
            )));
        }
        if serial != self.serial {
            return Err(bad(format!(
                "the guest's disk is {serial:?}, this is {:?}",
                self.serial
            )));
        }
        if read_only != self.backing.read_only() {
            return Err(bad(
                "only one of the guest's disk and this is read-only".into()
            ));
        }
        Ok(())
    }
}
