//! Which change of the disk does what: a function of the seed and the change's number alone, so that
//! whoever knows the options knows what every change has written.

use super::mix::mix;

/// Most sizes of requests in one load.
const MAX_SIZES: usize = 8;

/// In which order units are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other, from the begin again after the end.
    Sequential,
    /// Anywhere.
    Random,
}

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes units.
    Write,
    /// Discards them.
    Discard,
    /// Writes zeroes.
    Zeroes,
}

/// How often each kind of change comes, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Writes.
    pub writes: u64,
    /// Discards.
    pub discards: u64,
    /// Writes of zeroes.
    pub zeroes: u64,
}

/// Sizes of requests in units, each as often as the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    units: [u64; MAX_SIZES],
    count: usize,
}

impl Sizes {
    /// These sizes; `None` when there are none or too many, or one is zero.
    pub fn new(sizes: impl Iterator<Item = u64>) -> Option<Self> {
        let mut this = Self {
            units: [0; MAX_SIZES],
            count: 0,
        };
        for size in sizes {
            *this.units.get_mut(this.count).filter(|_| size > 0)? = size;
            this.count += 1;
        }
        (this.count > 0).then_some(this)
    }

    /// All of them.
    pub fn all(&self) -> &[u64] {
        &self.units[..self.count]
    }

    /// The one that a random number chooses.
    pub fn choose(&self, random: u64) -> u64 {
        self.units[(random % self.count as u64) as usize]
    }
}

/// One change of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Counted from 1.
    pub sequence: u64,
    /// What it does.
    pub kind: Kind,
    /// First unit of the region.
    pub first: u64,
    /// Units.
    pub units: u64,
}

/// All changes of a load, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// Whence random numbers come.
    pub seed: u64,
    /// Units of the region; at least the largest size.
    pub units: u64,
    /// Sizes of requests.
    pub sizes: Sizes,
    /// In which order.
    pub pattern: Pattern,
    /// Which kinds.
    pub shares: Shares,
    /// Units of each write that fills the region before all else; 0 when it is not filled.
    pub fill: u64,
    /// Changes so far.
    pub sequence: u64,
    /// Where the next change in a row begins.
    pub position: u64,
}

impl Script {
    /// Changes that fill the region.
    pub fn fills(&self) -> u64 {
        if self.fill == 0 {
            0
        } else {
            self.units.div_ceil(self.fill)
        }
    }

    /// A place for `size` units that a random number chooses.
    pub fn place(&self, random: u64, size: u64) -> u64 {
        random % (self.units / size).max(1) * size
    }
}

impl Iterator for Script {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        self.sequence += 1;
        let sequence = self.sequence;
        if sequence <= self.fills() {
            let first = (sequence - 1) * self.fill;
            return Some(Change {
                sequence,
                kind: Kind::Write,
                first,
                units: self.fill.min(self.units - first),
            });
        }
        let random = mix(self.seed, sequence);
        let Shares {
            writes,
            discards,
            zeroes,
        } = self.shares;
        let kind = match mix(random, 1) % (writes + discards + zeroes).max(1) {
            share if share < discards => Kind::Discard,
            share if share < discards + zeroes => Kind::Zeroes,
            _ => Kind::Write,
        };
        let units = self.sizes.choose(mix(random, 2));
        let first = match self.pattern {
            Pattern::Random => self.place(mix(random, 3), units),
            Pattern::Sequential => {
                if self.position + units > self.units {
                    self.position = 0;
                }
                self.position += units;
                self.position - units
            }
        };
        Some(Change {
            sequence,
            kind,
            first,
            units,
        })
    }
}
