//! A request in its place of the queue: what it does, and the memory that it does it with.

use super::stats::Op;
use crate::clock::{peek, poke};
use crate::units::{Change, Kind};
use crate::virtio::Buffer;

/// What a request is for.
#[derive(Clone, Copy)]
pub enum Work {
    Read {
        first: u64,
        units: u64,
    },
    Change(Change),
    /// All changes up to this one are flushed when it is done.
    Flush {
        floor: u64,
    },
}

impl Work {
    /// First unit and units that nobody else may touch meanwhile.
    pub fn range(&self) -> (u64, u64) {
        match *self {
            Self::Read { first, units } => (first, units),
            Self::Change(Change { first, units, .. }) => (first, units),
            Self::Flush { .. } => (0, 0),
        }
    }

    pub fn overlaps(&self, first: u64, units: u64) -> bool {
        let (own, count) = self.range();
        own < first + units && first < own + count
    }

    pub fn op(&self) -> Op {
        match self {
            Self::Read { .. } => Op::Read,
            Self::Flush { .. } => Op::Flush,
            Self::Change(change) => match change.kind {
                Kind::Write => Op::Write,
                Kind::Discard => Op::Discard,
                Kind::Zeroes => Op::Zeroes,
            },
        }
    }
}

/// What the device has been asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The request itself.
    Transfer,
    /// A flush behind it, before it counts as acknowledged.
    Flush,
}

#[derive(Clone, Copy)]
pub struct Slot {
    pub work: Work,
    pub stage: Stage,
    /// When the request was made, and when its stage was.
    pub since: u64,
    pub stage_since: u64,
    /// The device failed it; when it is asked again.
    pub again_at: Option<u64>,
    /// That it failed has been told.
    pub told: bool,
}

/// VIRTIO_BLK_T_..
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Where parts of a slot's control block lie.
const RANGE: u64 = 16;
const STATUS: u64 = 32;
const SERIAL: u64 = 36;
/// Bytes of a control block.
pub const CONTROL: u64 = 64;

/// The control block of a slot: header, range of a discard, status, serial number.
#[derive(Clone, Copy)]
pub struct Control(pub u64);

impl Control {
    fn header(self, kind: u32, sector: u64) -> [Buffer; 2] {
        poke(self.0, kind);
        poke(self.0 + 4, 0u32);
        poke(self.0 + 8, sector);
        poke(self.0 + STATUS, 0xffu8);
        let header = Buffer {
            address: self.0,
            len: 16,
            device_writes: false,
        };
        let status = Buffer {
            address: self.0 + STATUS,
            len: 1,
            device_writes: true,
        };
        [header, status]
    }

    /// Buffers that read into `address` or write from it.
    pub fn transfer(self, write: bool, sector: u64, address: u64, len: u32) -> [Buffer; 3] {
        let [header, status] = self.header(if write { OUT } else { IN }, sector);
        let data = Buffer {
            address,
            len,
            device_writes: !write,
        };
        [header, data, status]
    }

    /// Buffers that discard sectors or write zeroes to them; `unmap` is for zeroes alone.
    pub fn range(self, kind: Kind, sector: u64, sectors: u32, unmap: bool) -> [Buffer; 3] {
        let request = if kind == Kind::Discard {
            DISCARD
        } else {
            WRITE_ZEROES
        };
        let [header, status] = self.header(request, 0);
        poke(self.0 + RANGE, sector);
        poke(self.0 + RANGE + 8, sectors);
        poke(
            self.0 + RANGE + 12,
            u32::from(unmap && kind == Kind::Zeroes),
        );
        let data = Buffer {
            address: self.0 + RANGE,
            len: 16,
            device_writes: false,
        };
        [header, data, status]
    }

    pub fn flush(self) -> [Buffer; 2] {
        self.header(FLUSH, 0)
    }

    /// Buffers that ask for the serial number.
    pub fn get_id(self) -> [Buffer; 3] {
        let [header, status] = self.header(GET_ID, 0);
        let data = Buffer {
            address: self.0 + SERIAL,
            len: super::options::SERIAL as u32,
            device_writes: true,
        };
        [header, data, status]
    }

    pub fn serial(self) -> [u8; super::options::SERIAL] {
        peek(self.0 + SERIAL)
    }

    /// What the device said of the request; 0 is good.
    pub fn status(self) -> u8 {
        peek(self.0 + STATUS)
    }
}
