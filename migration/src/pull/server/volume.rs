//! A volume as it is served: what its client lacks of it, and its answers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::source::PullSource;
use crate::error::Error;
use crate::pull::maps;
use crate::vm::VmResult;
use crate::wire::pull::{Frame, Gone, PULL_LEN, PulledVolume, Units};

/// What is told of a volume that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedVolume {
    /// Identity of the disk.
    pub id: String,
    /// Bytes that its client lacks, as far as it has told.
    pub missing: u64,
    /// Whether the client is whole and durable.
    pub is_released: bool,
}

/// Units that the client lacks, as far as it has told or was answered.
struct Lacks {
    bits: Vec<u64>,
    units: u64,
}

impl Lacks {
    fn has(&self, unit: u64) -> bool {
        let word = self.bits.get((unit / 64) as usize);
        word.is_some_and(|word| word & 1 << (unit % 64) != 0)
    }

    fn put(&mut self, unit: u64, lacks: bool) {
        let Some(word) = self.bits.get_mut((unit / 64) as usize) else {
            return;
        };
        let bit = 1 << (unit % 64);
        match (lacks, *word & bit != 0) {
            (true, false) => self.units += 1,
            (false, true) => self.units -= 1,
            _ => return,
        }
        *word ^= bit;
    }
}

/// A volume that is served.
pub(super) struct Volume {
    source: Arc<dyn PullSource>,
    told: PulledVolume,
    lacks: Mutex<Lacks>,
    is_released: AtomicBool,
}

impl Volume {
    pub fn new(source: Arc<dyn PullSource>) -> Self {
        let told = source.volume();
        let units = told.units();
        let mut lacks = Lacks {
            bits: vec![0; units.div_ceil(64) as usize],
            units: 0,
        };
        let is_released = source.is_released();
        if !is_released {
            let held = (0..units).filter(|unit| source.holds(*unit));
            held.for_each(|unit| lacks.put(unit, true));
        }
        Self {
            source,
            told,
            lacks: Mutex::new(lacks),
            is_released: AtomicBool::new(is_released),
        }
    }

    pub fn told(&self) -> &PulledVolume {
        &self.told
    }

    pub fn is_released(&self) -> bool {
        self.is_released.load(Ordering::Acquire)
    }

    pub fn status(&self) -> ServedVolume {
        let (units, lacks_last) = {
            let lacks = self.lacks();
            let last = self.told.units().saturating_sub(1);
            (lacks.units, lacks.has(last))
        };
        // The last one may be short.
        let whole = u64::from(self.told.unit);
        let beyond = self.told.units() * whole - self.told.size;
        let missing = units * whole - if lacks_last { beyond } else { 0 };
        ServedVolume {
            id: self.told.id.clone(),
            missing,
            is_released: self.is_released(),
        }
    }

    fn lacks(&self) -> MutexGuard<'_, Lacks> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in which of `units` the client has.
    pub fn hear_map(&self, units: &Units, map: &[u8]) -> Result<(), Error> {
        maps::check(map, units.count)?;
        let range = self.check(units)?;
        let mut lacks = self.lacks();
        for unit in range.clone() {
            let has = maps::is_set(map, unit - range.start);
            lacks.put(unit, !has && self.source.holds(unit));
        }
        Ok(())
    }

    /// The numbers of `units`, which are those of a peer.
    pub fn check(&self, units: &Units) -> Result<Range<u64>, Error> {
        let range = units.range().filter(|range| range.end <= self.told.units());
        range.ok_or_else(|| {
            Error::Protocol(format!(
                "{} units from {} on are not of volume {}, which has {}",
                units.count,
                units.first,
                self.told.id,
                self.told.units()
            ))
        })
    }

    /// The numbers of `units`, which are those of a peer, if all of them are here.
    pub fn check_held(&self, units: &Units) -> Result<(), Error> {
        let mut range = self.check(units)?;
        match range.find(|unit| !self.source.holds(*unit)) {
            None => Ok(()),
            Some(unit) => Err(Error::Protocol(format!(
                "unit {unit} of volume {} is not here, and was asked for",
                self.told.id
            ))),
        }
    }

    /// Which of `units` are here, as a map.
    pub fn held(&self, units: &Units) -> Result<Vec<u8>, Error> {
        let range = self.check(units)?;
        let mut map = vec![0; units.count.div_ceil(8) as usize];
        for unit in range.clone().filter(|unit| self.source.holds(*unit)) {
            let at = unit - range.start;
            maps::set(&mut map, at..at + 1);
        }
        Ok(map)
    }

    /// The client has all that is here, durably.
    pub fn release(&self) -> VmResult<()> {
        self.source.release()?;
        self.is_released.store(true, Ordering::Release);
        let mut lacks = self.lacks();
        lacks.bits.fill(0);
        lacks.units = 0;
        Ok(())
    }

    /// Which of `units` hold data, as a map.
    pub fn data(&self, units: &Units) -> VmResult<Vec<u8>> {
        let mut map = vec![0; units.count.div_ceil(8) as usize];
        let Some(bytes) = self.told.bytes(units) else {
            return Ok(map);
        };
        let unit = u64::from(self.told.unit);
        for data in self.source.data(bytes)? {
            let touched = data.start / unit..data.end.div_ceil(unit);
            let first = touched.start.max(units.first) - units.first;
            let end = touched
                .end
                .saturating_sub(units.first)
                .min(units.count.into());
            maps::set(&mut map, first..end);
        }
        Ok(map)
    }

    /// The answer to a request, with its payload in `bytes` behind room for a header.
    pub fn answer(&self, number: u32, units: Units, bytes: &mut Vec<u8>) -> Frame {
        bytes.clear();
        bytes.resize(PULL_LEN, 0);
        if self.is_released() {
            let why = Gone::Released;
            return Frame::Gone { number, why };
        }
        match self.read(&units, bytes) {
            Ok(zeroes) => Frame::Answer {
                number,
                units,
                zeroes,
                len: (bytes.len() - PULL_LEN) as u32,
            },
            Err(error) => {
                tracing::warn!(%error, disk = self.told.id, "what is asked for cannot be read");
                bytes.truncate(PULL_LEN);
                let why = Gone::Unreadable;
                Frame::Gone { number, why }
            }
        }
    }

    /// Appends the units that do not read as zeroes; which do, a bit each.
    fn read(&self, units: &Units, bytes: &mut Vec<u8>) -> VmResult<u32> {
        let map = self.data(units)?;
        let mut zeroes = 0;
        for index in 0..units.count {
            let one = Units {
                volume: units.volume,
                first: units.first + u64::from(index),
                count: 1,
            };
            let range = self.told.bytes(&one).unwrap_or_default();
            let at = bytes.len();
            if maps::is_set(&map, index.into()) {
                bytes.resize(at + (range.end - range.start) as usize, 0);
                self.source.read(range.start, &mut bytes[at..])?;
            }
            if is_zero(&bytes[at..]) {
                bytes.truncate(at);
                zeroes |= 1 << index;
            }
        }
        Ok(zeroes)
    }

    /// These units are on their way to the client.
    pub fn answered(&self, units: &Units) {
        let mut lacks = self.lacks();
        for unit in units.range().unwrap_or_default() {
            lacks.put(unit, false);
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // In pieces of which the compiler makes few instructions.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}
