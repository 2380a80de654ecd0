//! The disk of a load: its region in units, and requests for it with all that they read checked.

use super::slot::{Control, Slot, Stage, Work};
use super::table::Table;
use crate::clock::{Clock, tsc};
use crate::ring::Ring;
use crate::shared::{self, Fault};
use crate::units::{Content, Head, Identity, Kind, State, compose, inspect};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// What was seen in a range of units.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    pub units: u64,
    pub blank: u64,
    pub unknown: u64,
    pub faults: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.units += other.units;
        self.blank += other.blank;
        self.unknown += other.unknown;
        self.faults += other.faults;
    }
}

pub struct Disk {
    /// Its number among the loads.
    pub number: usize,
    pub ring: Ring,
    pub table: Table,
    pub identity: Identity,
    /// First sector of the region.
    pub sector: u64,
    /// Bytes of a unit.
    pub unit: u64,
    /// Control blocks and data buffers, one of each for each place.
    pub control: u64,
    pub buffers: u64,
    pub stride: u64,
}

impl Disk {
    pub fn sector_of(&self, unit: u64) -> u64 {
        self.sector + unit * (self.unit / SECTOR)
    }

    pub fn control(&self, place: usize) -> Control {
        Control(self.control + place as u64 * super::slot::CONTROL)
    }

    fn buffer(&self, place: usize) -> u64 {
        self.buffers + place as u64 * self.stride
    }

    /// The words of unit `i` in the buffer of a place whose request is not with the device.
    fn words(&mut self, place: usize, i: u64) -> &mut [u64] {
        let address = self.buffer(place) + i * self.unit;
        // SAFETY: RAM that was taken for this, and neither the device nor another CPU uses it now.
        unsafe { core::slice::from_raw_parts_mut(address as *mut u64, (self.unit / 8) as usize) }
    }

    /// Composes what a write writes.
    pub fn compose(&mut self, place: usize, first: u64, units: u64, sequence: u64, flushed: u64) {
        for i in 0..units {
            let head = Head {
                identity: self.identity,
                sector: self.sector_of(first + i),
                sequence,
                flushed,
            };
            compose(self.words(place, i), &head);
        }
    }

    /// Puts a request, or the flush behind it, into its place.
    pub fn put(&mut self, place: usize, slot: &mut Slot, now: u64) {
        slot.stage_since = now;
        slot.again_at = None;
        let control = self.control(place);
        let (first, units) = slot.work.range();
        let sector = self.sector_of(first);
        let bytes = units * self.unit;
        let change = match slot.work {
            Work::Flush { .. } => return self.ring.put(place, &control.flush()),
            _ if slot.stage == Stage::Flush => return self.ring.put(place, &control.flush()),
            Work::Read { .. } => None,
            Work::Change(change) => Some(change),
        };
        let buffers = match change {
            Some(change) if change.kind != Kind::Write => {
                // Both ways of writing zeroes are asked for.
                let unmap = change.sequence % 2 == 1;
                control.range(change.kind, sector, (bytes / SECTOR) as u32, unmap)
            }
            _ => control.transfer(change.is_some(), sector, self.buffer(place), bytes as u32),
        };
        self.ring.put(place, &buffers);
    }

    /// Compares what was read with what must be there. What is wrong is told once; nothing is known
    /// of such a unit from there on.
    pub fn verify(&mut self, place: usize, first: u64, units: u64) -> Seen {
        let mut seen = Seen {
            units,
            ..Seen::default()
        };
        for i in 0..units {
            let unit = first + i;
            let state = self.table.get(unit);
            let content = inspect(self.words(place, i));
            seen.blank += u64::from(content == Content::Blank);
            seen.unknown += u64::from(state == State::Unknown);
            let sector = self.sector_of(unit);
            let after = match state.judge(&content, &self.identity, sector) {
                Ok(after) => after,
                Err(wrong) => {
                    seen.faults += 1;
                    self.fault(wrong.kind, sector, wrong.expected, wrong.found);
                    State::Unknown
                }
            };
            if after != state {
                self.table.set(unit, after);
            }
        }
        seen
    }

    /// The change is done and counts.
    pub fn changed(&mut self, kind: Kind, first: u64, units: u64, sequence: u64) {
        for unit in first..first + units {
            self.table
                .set(unit, self.table.get(unit).after(kind, sequence));
        }
    }

    /// Tells a fault at a sector of this disk.
    pub fn fault(&self, kind: &'static str, sector: u64, expected: u64, found: u64) {
        shared::report(Fault {
            kind,
            gpa: sector * SECTOR,
            expected,
            found,
            disk: Some(self.number),
        });
    }

    /// Asks the device for its serial number and waits for it, before all other requests.
    pub fn serial_of(
        ring: &mut Ring,
        control: Control,
        clock: &Clock,
    ) -> Option<[u8; super::options::SERIAL]> {
        ring.put(0, &control.get_id());
        ring.notify();
        let from = tsc();
        while ring.take().is_none() {
            if tsc().wrapping_sub(from) > clock.cycles_of_us(5_000_000) {
                return None;
            }
            core::hint::spin_loop();
        }
        (control.status() == 0).then(|| control.serial())
    }
}
