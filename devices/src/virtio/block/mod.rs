//! The virtio disk (virtio 1.2, 5.2).

mod config;
pub(super) mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{BlockDevice, SECTOR_SIZE, ZeroMode};
use virtio_bindings::virtio_blk::*;

use super::chain::{BadRequest, Chain};
use super::device::read_config_space;
use super::{DeviceKind, DeviceStateV1, VirtioDevice};
use crate::{Error, Result};
use config::{LEN, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, QUEUE_SIZE, config_space};

pub use state::BlockStateV1;

/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: u64 = 16;
/// Bytes of a range to be discarded or zeroed: sector, count, flags.
const RANGE: usize = 16;
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
    disk: Arc<dyn BlockDevice>,
    serial: String,
    queue_sizes: Vec<u16>,
    config: [u8; LEN],
    complaints: AtomicU32,
}

/// How a request ended, as its status byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    const fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

impl Block {
    /// A disk whose bytes are those of `disk`.
    pub fn new(disk: Arc<dyn BlockDevice>, config: BlockConfig) -> Self {
        let BlockConfig { mut serial, queues } = config;
        while serial.len() > ID {
            serial.pop();
        }
        let queues = queues.clamp(1, MAX_QUEUES);
        Self {
            config: config_space(disk.size() / SECTOR_SIZE, queues),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            disk,
            serial,
            complaints: AtomicU32::new(0),
        }
    }

    fn done(&self, result: block::Result<()>) -> Status {
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                if self.complaints.fetch_add(1, Ordering::Relaxed) < MOST_COMPLAINTS {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "disk request failed"
                    );
                } else {
                    // Stays far from wrapping around.
                    self.complaints.store(MOST_COMPLAINTS, Ordering::Relaxed);
                }
                Status::IoError
            }
        }
    }

    /// First byte of a sector, when `len` bytes from there on are on the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_SIZE)?;
        (offset.checked_add(len)? <= self.disk.size()).then_some(offset)
    }

    fn read(&self, chain: &mut Chain<'_>, sector: u64, len: u64) -> (Status, u64) {
        let Some(offset) = self
            .range(sector, len)
            .filter(|_| len.is_multiple_of(SECTOR_SIZE))
        else {
            return (Status::IoError, 0);
        };
        let result = self.disk.read(chain.writable_buffers(0, len), offset);
        // Also after a failure: part of the memory may have been filled.
        chain.mark_written(0, len);
        match self.done(result) {
            Status::Ok => (Status::Ok, len),
            status => (status, 0),
        }
    }

    fn write(&self, chain: &mut Chain<'_>, sector: u64, features: u64) -> Status {
        let len = chain.readable_len() - HEADER;
        let Some(offset) = self
            .range(sector, len)
            .filter(|_| len.is_multiple_of(SECTOR_SIZE))
        else {
            return Status::IoError;
        };
        let mut result = self.disk.write(chain.readable_buffers(HEADER, len), offset);
        if result.is_ok() && features & (1 << VIRTIO_BLK_F_FLUSH) == 0 {
            // A driver that cannot flush takes every completed write for durable.
            result = self.disk.flush();
        }
        self.done(result)
    }

    /// Discards, or zeroes, the ranges that the request holds.
    fn change_ranges(
        &self,
        chain: &Chain<'_>,
        request: u32,
    ) -> std::result::Result<Status, BadRequest> {
        let len = chain.readable_len() - HEADER;
        if len == 0 || !len.is_multiple_of(RANGE as u64) {
            return Ok(Status::IoError);
        }
        let count = len / RANGE as u64;
        if count > u64::from(MAX_RANGES) {
            return Ok(Status::IoError);
        }
        for index in 0..count {
            let mut raw = [0; RANGE];
            chain.read_at(HEADER + index * RANGE as u64, &mut raw)?;
            let status = self.change_range(request, raw);
            if status != Status::Ok {
                return Ok(status);
            }
        }
        Ok(Status::Ok)
    }

    fn change_range(&self, request: u32, raw: [u8; RANGE]) -> Status {
        let raw = u128::from_le_bytes(raw);
        // The three little-endian fields: 64 bits of sector, 32 of count, 32 of flags.
        let (sector, sectors, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        let len = u64::from(sectors) * SECTOR_SIZE;
        let Some(offset) = self.range(sector, len) else {
            return Status::IoError;
        };
        if request == VIRTIO_BLK_T_DISCARD {
            // A discard has no flags to set (5.2.6.2).
            if flags != 0 {
                return Status::Unsupported;
            }
            if sectors > MAX_DISCARD_SECTORS {
                return Status::IoError;
            }
            return self.done(self.disk.discard(offset, len));
        }
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Status::Unsupported;
        }
        if sectors > MAX_ZERO_SECTORS {
            return Status::IoError;
        }
        let mode = if flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP == 0 {
            ZeroMode::KeepAllocated
        } else {
            ZeroMode::MayUnmap
        };
        self.done(self.disk.write_zeroes(offset, len, mode))
    }

    fn get_id(
        &self,
        chain: &Chain<'_>,
        room: u64,
    ) -> std::result::Result<(Status, u64), BadRequest> {
        let mut id = [0; ID];
        id[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        let len = room.min(ID as u64);
        chain.write_at(0, &id[..len as usize])?;
        Ok((Status::Ok, len))
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
            | if self.disk.read_only() {
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

    fn process(
        &self,
        _queue: usize,
        chain: &mut Chain<'_>,
        features: u64,
    ) -> std::result::Result<u32, BadRequest> {
        let mut header = [0; HEADER as usize];
        chain.read_at(0, &mut header)?;
        let header = u128::from_le_bytes(header);
        // The fields: 32 bits of type, 32 reserved, 64 of sector, little-endian.
        let (request, sector) = (header as u32, (header >> 64) as u64);
        // The status is the last byte that the device may write.
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or_else(|| chain.too_short())?;
        let (status, written) = match request {
            VIRTIO_BLK_T_IN => self.read(chain, sector, room),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.disk.read_only() =>
            {
                (Status::IoError, 0)
            }
            VIRTIO_BLK_T_OUT => (self.write(chain, sector, features), 0),
            VIRTIO_BLK_T_FLUSH => (self.done(self.disk.flush()), 0),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                (self.change_ranges(chain, request)?, 0)
            }
            VIRTIO_BLK_T_GET_ID => self.get_id(chain, room)?,
            _ => (Status::Unsupported, 0),
        };
        chain.write_at(room, &[status.byte()])?;
        // A driver takes the length for the bytes that are valid from the start on; the status lies
        // behind them only when everything before it was written.
        Ok(u32::try_from(if written == room { room + 1 } else { written }).unwrap_or(u32::MAX))
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush().map_err(|source| Error::Flush {
            disk: self.disk.identity().to_string(),
            source,
        })
    }

    fn storage(&self) -> Option<String> {
        Some(format!("disk {}", self.disk.identity()))
    }

    fn save(&self) -> DeviceStateV1 {
        DeviceStateV1::Block(BlockStateV1 {
            capacity_sectors: self.disk.size() / SECTOR_SIZE,
            serial: self.serial.clone(),
            read_only: self.disk.read_only(),
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
        let sectors = self.disk.size() / SECTOR_SIZE;
        if capacity_sectors != sectors {
            let disk = self.disk.identity();
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
        if read_only != self.disk.read_only() {
            return Err(bad(
                "only one of the guest's disk and this is read-only".into()
            ));
        }
        Ok(())
    }
}
