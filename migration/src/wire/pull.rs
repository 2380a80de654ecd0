//! Frames of a pull: units of a volume that have not come yet are asked for, and answered.
//!
//! A frame is a header of fixed length and its payload. What a payload may hold follows from the header, which is read
//! and bounded before room is made for anything.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_VOLUMES, check};
use crate::error::Error;

/// First bytes of a frame.
pub const PULL_MAGIC: u32 = u32::from_le_bytes(*b"vmmQ");
/// Most units in a request: one bit for each in an answer says whether it reads as zeroes.
pub const MAX_UNITS: u32 = 32;
/// Most payload of an answer.
pub const MAX_ANSWER: u32 = 2 << 20;
/// Most units that one piece of a map is of.
pub const MAX_MAPPED: u32 = 512 << 10;
/// Longest list of volumes.
pub const MAX_LIST: u32 = 64 << 10;
/// Requests that may wait for an answer on one connection.
pub const MAX_ASKED: usize = 64;
/// Connections of one client, each of which answers in an order of its own.
pub const MAX_LANES: u16 = 8;
/// Sizes that a unit may have: that of a page to that of a block.
pub const UNIT_BITS: Range<u32> = 12..17;
/// Most bytes of a volume.
pub const MAX_SIZE: u64 = 1 << 47;

/// Which end of a pull sends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Lacks units.
    Client,
    /// Has them.
    Server,
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for it.
    Demand,
    /// It is needed some time.
    Background,
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The volume was released: its client said that it is whole and durable.
    Released,
    /// Its storage cannot be read.
    Unreadable,
}

/// Why a connection is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has not the identifier and the secret of what is served here.
    Stranger,
    /// There are too many connections.
    Busy,
    /// There is no version of the protocol that both speak.
    Version,
}

/// A run of units of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// Which volume, in the order of the server's list.
    pub volume: u16,
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u32,
}

impl Units {
    /// Their numbers, unless there are none or more than numbers go.
    pub fn range(&self) -> Option<Range<u64>> {
        let end = self.first.checked_add(u64::from(self.count))?;
        (self.count > 0).then_some(self.first..end)
    }
}

/// A volume as its server tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledVolume {
    /// Identity of the disk.
    pub id: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of a unit, a power of two; the last unit may be short.
    pub unit: u32,
}

impl PulledVolume {
    /// Units that it has.
    pub fn units(&self) -> u64 {
        self.size.div_ceil(u64::from(self.unit.max(1)))
    }

    /// Which bytes of it `units` are; `None` when they lie outside of it.
    pub fn bytes(&self, units: &Units) -> Option<Range<u64>> {
        let range = units.range().filter(|range| range.end <= self.units())?;
        let unit = u64::from(self.unit);
        Some(range.start * unit..(range.end * unit).min(self.size))
    }

    /// Bytes of unit `unit`, of which the last may be short.
    pub fn len_of(&self, unit: u64) -> u32 {
        let start = unit.saturating_mul(self.unit.into());
        self.size.saturating_sub(start).min(self.unit.into()) as u32
    }

    /// # Errors
    /// [`Error::Protocol`] when it is no volume that can be pulled.
    fn check(&self) -> Result<(), Error> {
        let fits = self.unit.is_power_of_two() && UNIT_BITS.contains(&self.unit.trailing_zeros());
        if fits && (1..=MAX_SIZE).contains(&self.size) && self.size.is_multiple_of(512) {
            return Ok(());
        }
        Err(Error::Protocol(format!(
            "a volume of {} bytes in units of {} is none",
            self.size, self.unit
        )))
    }
}

/// What a server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// In the order in which frames number them, at most 64.
    pub volumes: Vec<PulledVolume>,
}

impl VolumeList {
    /// Reads the payload of [`Frame::Volumes`].
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no list of volumes.
    pub fn decode(payload: &[u8]) -> Result<Self, Error> {
        let list: Self = serde_json::from_slice(payload)
            .map_err(|error| Error::Protocol(format!("no list of volumes: {error}")))?;
        if list.volumes.len() > MAX_VOLUMES {
            return Err(Error::Protocol("too many volumes".into()));
        }
        list.volumes.iter().try_for_each(PulledVolume::check)?;
        Ok(list)
    }

    /// As it travels.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is none that could be read back.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        self.volumes.iter().try_for_each(PulledVolume::check)?;
        let text = serde_json::to_vec(self).unwrap_or_default();
        if text.is_empty() || text.len() > MAX_LIST as usize || self.volumes.len() > MAX_VOLUMES {
            return Err(Error::Protocol("too many volumes".into()));
        }
        Ok(text)
    }
}

/// What a frame says; those that have a payload tell how long it is by [`Frame::payload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The server's first: what it has. The payload is a [`VolumeList`].
    Volumes {
        /// Bytes of the list.
        len: u32,
    },
    /// Which units the client has: a bit for each in the payload, least significant first.
    Present(Units),
    /// The client wants these units.
    Request {
        /// Number of the request, not one that waits for its answer.
        number: u32,
        /// What it wants.
        units: Units,
        /// How much.
        class: Class,
    },
    /// The units of a request. The payload holds those that do not read as zeroes.
    Answer {
        /// Number of the request.
        number: u32,
        /// What was asked for.
        units: Units,
        /// Which of them read as zeroes, a bit each.
        zeroes: u32,
        /// Bytes of all others.
        len: u32,
    },
    /// There is no answer to a request.
    Gone {
        /// Number of the request.
        number: u32,
        /// Why not.
        why: Gone,
    },
    /// The client wants to know which units hold data.
    AskData {
        /// Number of the question.
        number: u32,
        /// Of which units.
        units: Units,
    },
    /// Which units hold data, as bits as in [`Frame::Present`]; all others read as zeroes.
    Data {
        /// Number of the question.
        number: u32,
        /// What was asked for.
        units: Units,
    },
    /// The client wants to know which units the server has, of a volume that is there in part.
    AskHeld {
        /// Number of the question.
        number: u32,
        /// Of which units.
        units: Units,
    },
    /// Which units the server has, as bits as in [`Frame::Present`]; all others are asked of somebody else.
    Held {
        /// Number of the question.
        number: u32,
        /// What was asked for.
        units: Units,
    },
    /// What the client lacks of what the server has is here and durable: nobody will ask for it again.
    Finished {
        /// Which.
        volume: u16,
    },
    /// The server has recorded that.
    Released {
        /// Which.
        volume: u16,
    },
    /// Are you there?
    Ping {
        /// Comes back.
        number: u32,
    },
    /// Yes.
    Pong {
        /// As in the question.
        number: u32,
    },
    /// The connection is of no use; nothing comes after it.
    Refused(Refusal),
}

const VOLUMES: u16 = 1;
const PRESENT: u16 = 2;
const REQUEST: u16 = 3;
const ANSWER: u16 = 4;
const GONE: u16 = 5;
const ASK_DATA: u16 = 6;
const DATA: u16 = 7;
const FINISHED: u16 = 8;
const RELEASED: u16 = 9;
const PING: u16 = 10;
const PONG: u16 = 11;
const REFUSED: u16 = 12;
const ASK_HELD: u16 = 13;
const HELD: u16 = 14;

impl Frame {
    /// Bytes of its payload.
    pub fn payload(&self) -> usize {
        match self {
            Self::Volumes { len } | Self::Answer { len, .. } => *len as usize,
            Self::Present(units) | Self::Data { units, .. } | Self::Held { units, .. } => {
                map_len(units.count)
            }
            _ => 0,
        }
    }

    /// Who sends it.
    pub fn from(&self) -> End {
        match self {
            Self::Present(_)
            | Self::Request { .. }
            | Self::AskData { .. }
            | Self::AskHeld { .. }
            | Self::Finished { .. }
            | Self::Ping { .. } => End::Client,
            Self::Volumes { .. }
            | Self::Answer { .. }
            | Self::Gone { .. }
            | Self::Data { .. }
            | Self::Held { .. }
            | Self::Released { .. }
            | Self::Pong { .. }
            | Self::Refused(_) => End::Server,
        }
    }
}

/// Bytes of a map of `units` units.
pub fn map_len(units: u32) -> usize {
    units.div_ceil(8) as usize
}

/// Header of a frame.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug)]
#[repr(C)]
pub struct PullHeader {
    magic: U32,
    kind: U16,
    volume: U16,
    number: U32,
    count: U32,
    first: U64,
    detail: U32,
    payload: U32,
    check: U64,
}

/// Length of a header.
pub const PULL_LEN: usize = size_of::<PullHeader>();

impl PullHeader {
    /// The header of `frame` with `payload`.
    pub fn new(frame: &Frame, payload: &[u8]) -> Self {
        let none = Units {
            volume: 0,
            first: 0,
            count: 0,
        };
        let of = |volume| Units { volume, ..none };
        let (kind, number, units, detail) = match *frame {
            Frame::Volumes { .. } => (VOLUMES, 0, none, 0),
            Frame::Present(units) => (PRESENT, 0, units, 0),
            Frame::Request {
                number,
                units,
                class,
            } => (REQUEST, number, units, class as u32),
            Frame::Answer {
                number,
                units,
                zeroes,
                ..
            } => (ANSWER, number, units, zeroes),
            Frame::Gone { number, why } => (GONE, number, none, why as u32),
            Frame::AskData { number, units } => (ASK_DATA, number, units, 0),
            Frame::Data { number, units } => (DATA, number, units, 0),
            Frame::AskHeld { number, units } => (ASK_HELD, number, units, 0),
            Frame::Held { number, units } => (HELD, number, units, 0),
            Frame::Finished { volume } => (FINISHED, 0, of(volume), 0),
            Frame::Released { volume } => (RELEASED, 0, of(volume), 0),
            Frame::Ping { number } => (PING, number, none, 0),
            Frame::Pong { number } => (PONG, number, none, 0),
            Frame::Refused(why) => (REFUSED, 0, none, why as u32),
        };
        let mut header = Self {
            magic: PULL_MAGIC.into(),
            kind: kind.into(),
            volume: units.volume.into(),
            number: number.into(),
            count: units.count.into(),
            first: units.first.into(),
            detail: detail.into(),
            payload: (payload.len() as u32).into(),
            check: 0.into(),
        };
        header.check = header.check_with(payload).into();
        header
    }

    fn check_with(mut self, payload: &[u8]) -> u64 {
        self.check = 0.into();
        check(&[self.as_bytes(), payload])
    }

    /// What the frame says that `end` has sent, before any of its payload is read or room is made for it.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is none, not one of theirs, or exceeds the limits.
    pub fn frame(&self, end: End) -> Result<Frame, Error> {
        if self.magic.get() != PULL_MAGIC {
            return Err(Error::Protocol("the connection carries no pull".into()));
        }
        let (number, detail, len) = (self.number.get(), self.detail.get(), self.payload.get());
        let volume = self.volume.get();
        let units = Units {
            volume,
            first: self.first.get(),
            count: self.count.get(),
        };
        let kind = self.kind.get();
        let frame = match (kind, detail) {
            (VOLUMES, 0) => Frame::Volumes { len },
            (PRESENT, 0) => Frame::Present(units),
            (REQUEST, 0 | 1) => Frame::Request {
                number,
                units,
                class: [Class::Demand, Class::Background][detail as usize],
            },
            (ANSWER, zeroes) => Frame::Answer {
                number,
                units,
                zeroes,
                len,
            },
            (GONE, 0 | 1) => Frame::Gone {
                number,
                why: [Gone::Released, Gone::Unreadable][detail as usize],
            },
            (ASK_DATA, 0) => Frame::AskData { number, units },
            (DATA, 0) => Frame::Data { number, units },
            (ASK_HELD, 0) => Frame::AskHeld { number, units },
            (HELD, 0) => Frame::Held { number, units },
            (FINISHED, 0) => Frame::Finished { volume },
            (RELEASED, 0) => Frame::Released { volume },
            (PING, 0) => Frame::Ping { number },
            (PONG, 0) => Frame::Pong { number },
            (REFUSED, 0..=2) => Frame::Refused(
                [Refusal::Stranger, Refusal::Busy, Refusal::Version][detail as usize],
            ),
            _ => {
                return Err(Error::Protocol(format!(
                    "frame of a pull of unknown kind {kind} ({detail})"
                )));
            }
        };
        if frame.from() != end {
            return Err(Error::Protocol(format!(
                "frame {kind} of a pull came from the wrong side"
            )));
        }
        self.within_limits(&frame)?;
        Ok(frame)
    }

    fn within_limits(&self, frame: &Frame) -> Result<(), Error> {
        let units = |units: &Units, most| units.count <= most && units.range().is_some();
        let fits = match frame {
            Frame::Volumes { len } => *len <= MAX_LIST,
            Frame::Present(of)
            | Frame::AskData { units: of, .. }
            | Frame::Data { units: of, .. }
            | Frame::AskHeld { units: of, .. }
            | Frame::Held { units: of, .. } => units(of, MAX_MAPPED),
            Frame::Request { units: of, .. } => units(of, MAX_UNITS),
            Frame::Answer {
                units: of,
                zeroes,
                len,
                ..
            } => {
                let beyond = u64::from(*zeroes) >> of.count.min(63);
                units(of, MAX_UNITS) && *len <= MAX_ANSWER && beyond == 0
            }
            _ => true,
        };
        if fits && frame.payload() == self.payload.get() as usize {
            return Ok(());
        }
        Err(Error::Protocol(format!(
            "frame {} of a pull of {} units and {} bytes exceeds the limits",
            self.kind.get(),
            self.count.get(),
            self.payload.get()
        )))
    }

    /// Checks the frame against damage on the way.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is not as it was sent.
    pub fn verify(&self, payload: &[u8]) -> Result<(), Error> {
        if self.check_with(payload) != self.check.get() {
            return Err(Error::Protocol("a frame of a pull is damaged".into()));
        }
        Ok(())
    }
}
