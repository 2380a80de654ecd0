//! A driver of virtio disks.
#![allow(dead_code)] // Each test file uses its part.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use block::fault::FaultLayer;
use block::{Access, BlockDevice, Content, RawImage};
use devices::virtio::{Block, BlockConfig};

use super::{BUFFERS, Driver, readable, writable};

pub const SECTORS: u64 = 256;
pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_ZERO: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub fn create(path: &Path) {
    File::create(path).unwrap().set_len(SECTORS * 512).unwrap();
}

pub fn open(path: &Path) -> Arc<FaultLayer> {
    let image = RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap();
    Arc::new(FaultLayer::new(Arc::new(image)))
}

pub fn device(disk: Arc<dyn BlockDevice>, queues: u16) -> Box<Block> {
    let config = BlockConfig {
        serial: "disk-0".into(),
        queues,
    };
    Box::new(Block::over(disk, config).unwrap())
}

impl Driver {
    fn header(&self, queue: usize, request: u32, sector: u64) -> u64 {
        let at = BUFFERS + queue as u64 * 0x1000;
        self.put(at, &request.to_le_bytes());
        self.put(at + 8, &sector.to_le_bytes());
        self.put(at + 16, &[0xff]);
        at
    }

    pub fn disk_write(&mut self, queue: usize, sector: u64, bytes: &[u8], indirect: bool) -> u8 {
        let header = self.header(queue, T_OUT, sector);
        let data = BUFFERS + 0x10_0000 + queue as u64 * 0x4_0000;
        self.put(data, bytes);
        let half = bytes.len() as u32 / 2;
        let segments = [
            readable(header, 16),
            readable(data, half),
            readable(data + u64::from(half), bytes.len() as u32 - half),
            writable(header + 16, 1),
        ];
        self.request(queue, &segments, indirect);
        self.bytes(header + 16, 1)[0]
    }

    pub fn disk_read(
        &mut self,
        queue: usize,
        sector: u64,
        len: u32,
        indirect: bool,
    ) -> (u8, Vec<u8>) {
        let header = self.header(queue, T_IN, sector);
        let data = BUFFERS + 0x10_0000 + queue as u64 * 0x4_0000;
        let segments = [
            readable(header, 16),
            writable(data, len),
            writable(header + 16, 1),
        ];
        self.request(queue, &segments, indirect);
        (
            self.bytes(header + 16, 1)[0],
            self.bytes(data, len as usize),
        )
    }

    /// A request with `payload` behind its header and nothing to be written but the status.
    pub fn disk_other(&mut self, queue: usize, request: u32, sector: u64, payload: &[u8]) -> u8 {
        let header = self.header(queue, request, sector);
        self.put(header + 32, payload);
        let mut segments = vec![readable(header, 16)];
        if !payload.is_empty() {
            segments.push(readable(header + 32, payload.len() as u32));
        }
        segments.push(writable(header + 16, 1));
        self.request(queue, &segments, false);
        self.bytes(header + 16, 1)[0]
    }
}

pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&sector.to_le_bytes());
    raw[8..12].copy_from_slice(&sectors.to_le_bytes());
    raw[12..].copy_from_slice(&flags.to_le_bytes());
    raw
}
