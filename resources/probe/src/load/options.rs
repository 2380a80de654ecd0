//! What a disk load is to do: `disk=INDEX|SERIAL[,key=value]..` of the command line.

use crate::options::{number, size};
use crate::units::{Pattern, Shares, Sizes};

/// Most disks under load.
pub const MAX_LOADS: usize = 8;
/// Most requests in flight at once.
pub const MAX_DEPTH: u64 = 64;
/// Largest request.
const MOST: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Bytes of a disk's serial number (VIRTIO_BLK_ID_BYTES).
pub const SERIAL: usize = 20;

#[derive(Clone, Copy)]
pub enum Which {
    /// Counted from 0 among the disks that are found.
    Index(usize),
    /// Its serial number, padded with zeroes.
    Serial([u8; SERIAL]),
}

/// When a write counts as acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// When it is done.
    Write,
    /// When a flush after it is done too.
    Flush,
}

/// What the region holds before the load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing that is known.
    Unknown,
    /// The load writes all of it first.
    Fill,
}

/// How fast requests are made.
#[derive(Clone, Copy)]
pub enum Pace {
    Fastest,
    Requests(u64),
    Bytes(u64),
}

#[derive(Clone, Copy)]
pub struct LoadOptions {
    pub which: Which,
    pub pattern: Pattern,
    /// Per cent of requests that read where the pattern says.
    pub reads: u64,
    /// Per cent of requests that read one part of the region after the other.
    pub verifies: u64,
    /// Per cent of requests that change the disk, each kind.
    pub shares: Shares,
    /// In units.
    pub sizes: Sizes,
    /// Bytes of a unit.
    pub unit: u64,
    pub depth: usize,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: Option<u64>,
    pub pace: Pace,
    /// Requests after which the load ends with a look at the whole region.
    pub count: Option<u64>,
    /// Flush after so many writes.
    pub flush: Option<u64>,
    pub flush_ms: Option<u64>,
    pub acknowledge: Acknowledge,
    pub start: Start,
    pub seed: Option<u64>,
    pub interval_ms: u64,
    pub cpu: Option<usize>,
}

fn percent(text: &str) -> Option<u64> {
    number(text).filter(|n| *n <= 100)
}

fn positive(text: &str) -> Option<u64> {
    number(text).filter(|n| *n > 0)
}

impl Which {
    fn parse(text: &str) -> Option<Self> {
        if let Some(index) = number(text) {
            return usize::try_from(index).ok().map(Self::Index);
        }
        let mut serial = [0; SERIAL];
        serial
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        (!text.is_empty()).then_some(Self::Serial(serial))
    }
}

impl LoadOptions {
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(',');
        let which = Which::parse(words.next()?)?;
        let (mut reads, mut verifies, mut discards, mut zeroes) = (50, 0, 0, 0);
        let (mut sizes, mut unit) = ("4K", None);
        let mut this = Self {
            which,
            pattern: Pattern::Random,
            reads: 0,
            verifies: 0,
            shares: Shares {
                writes: 0,
                discards: 0,
                zeroes: 0,
            },
            sizes: Sizes::new([1].into_iter())?,
            unit: 4096,
            depth: 1,
            offset: 0,
            length: None,
            pace: Pace::Fastest,
            count: None,
            flush: None,
            flush_ms: None,
            acknowledge: Acknowledge::Write,
            start: Start::Unknown,
            seed: None,
            interval_ms: 1000,
            cpu: None,
        };
        for word in words {
            let (key, value) = word.split_once('=')?;
            match key {
                "pattern" => {
                    this.pattern = match value {
                        "random" => Pattern::Random,
                        "sequential" => Pattern::Sequential,
                        _ => return None,
                    };
                }
                "read" => reads = percent(value)?,
                "verify" => verifies = percent(value)?,
                "discard" => discards = percent(value)?,
                "zeroes" => zeroes = percent(value)?,
                "size" => sizes = value,
                "unit" => unit = Some(size(value)?),
                "depth" => {
                    let depth = number(value).filter(|n| (1..=MAX_DEPTH).contains(n))?;
                    this.depth = depth as usize;
                }
                "offset" => this.offset = size(value)?,
                "length" => this.length = Some(size(value)?),
                "rate" => this.pace = Pace::Requests(positive(value)?),
                "bandwidth" => this.pace = Pace::Bytes(size(value).filter(|n| *n > 0)?),
                "count" => this.count = Some(positive(value)?),
                "flush" => this.flush = Some(positive(value)?),
                "flush_ms" => this.flush_ms = Some(positive(value)?),
                "ack" => {
                    this.acknowledge = match value {
                        "write" => Acknowledge::Write,
                        "flush" => Acknowledge::Flush,
                        _ => return None,
                    };
                }
                "start" => {
                    this.start = match value {
                        "unknown" => Start::Unknown,
                        "fill" => Start::Fill,
                        _ => return None,
                    };
                }
                "seed" => this.seed = Some(number(value)?),
                "interval_ms" => {
                    this.interval_ms = number(value).filter(|n| (1..=3_600_000).contains(n))?;
                }
                "cpu" => this.cpu = Some(usize::try_from(number(value)?).ok()?),
                _ => return None,
            }
        }
        let writes = 100u64.checked_sub(reads + verifies + discards + zeroes)?;
        (this.reads, this.verifies) = (reads, verifies);
        this.shares = Shares {
            writes,
            discards,
            zeroes,
        };
        this.sized(sizes, unit)
    }

    /// Sizes of requests, and the unit: 4 KiB, or 512 bytes where a size asks for it.
    fn sized(mut self, sizes: &str, unit: Option<u64>) -> Option<Self> {
        let bytes = || sizes.split('/').map(size);
        let whole = |unit: u64| bytes().all(|n| n.is_some_and(|n| n % unit == 0));
        self.unit = unit.unwrap_or(if whole(4096) { 4096 } else { SECTOR });
        let fits = matches!(self.unit, 512 | 1024 | 2048 | 4096)
            && whole(self.unit)
            && bytes().all(|n| n.is_some_and(|n| n <= MOST))
            && self.offset % self.unit == 0;
        if !fits {
            return None;
        }
        self.sizes = Sizes::new(bytes().flatten().map(|n| n / self.unit))?;
        Some(self)
    }

    /// Whether anything is ever flushed.
    pub fn flushes(&self) -> bool {
        self.flush.is_some() || self.flush_ms.is_some() || self.acknowledge == Acknowledge::Flush
    }

    /// Units of the largest request.
    pub fn largest(&self) -> u64 {
        self.sizes.all().iter().copied().max().unwrap_or(1)
    }

    /// Whether any request changes the disk.
    pub fn changes(&self) -> bool {
        self.reads + self.verifies < 100
    }
}
