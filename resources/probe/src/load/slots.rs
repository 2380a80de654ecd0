//! The places of requests, and who touches what at the moment.

use super::options::MAX_DEPTH;
use super::slot::{Slot, Work};

/// Requests in flight, and a flush.
pub const PLACES: usize = MAX_DEPTH as usize + 1;

#[repr(transparent)]
pub struct Slots([Option<Slot>; PLACES]);

impl Slots {
    /// Memory of all places.
    pub const BYTES: u64 = size_of::<Self>() as u64;

    /// All free, in memory that is nobody else's, [`Self::BYTES`] long: too much for a stack.
    pub fn new(memory: u64) -> &'static mut Self {
        let slots = memory as *mut Option<Slot>;
        // SAFETY: RAM that was taken for this; every element is written before any is read.
        unsafe {
            for place in 0..PLACES {
                slots.add(place).write(None);
            }
            &mut *slots.cast::<Self>()
        }
    }

    /// A place below `depth` that nobody has.
    pub fn free(&self, depth: usize) -> Option<usize> {
        (0..depth).find(|&place| self.0[place].is_none())
    }

    pub fn at(&self, place: usize) -> Option<&Slot> {
        self.0.get(place).and_then(Option::as_ref)
    }

    pub fn at_mut(&mut self, place: usize) -> Option<&mut Slot> {
        self.0.get_mut(place).and_then(Option::as_mut)
    }

    pub fn set(&mut self, place: usize, slot: Option<Slot>) {
        self.0[place] = slot;
    }

    pub fn in_flight(&self) -> usize {
        self.0.iter().flatten().count()
    }

    pub fn idle(&self) -> bool {
        self.in_flight() == 0
    }

    /// Whether a request touches any of these units.
    pub fn touched(&self, first: u64, units: u64) -> bool {
        let mut slots = self.0.iter().flatten();
        slots.any(|slot| slot.work.overlaps(first, units))
    }

    /// Whether a request changes any of these units.
    pub fn changed(&self, first: u64, units: u64) -> bool {
        let mut slots = self.0.iter().flatten();
        slots.any(|slot| matches!(slot.work, Work::Change(_)) && slot.work.overlaps(first, units))
    }

    /// The newest change up to which none is in flight, `newest` at most.
    pub fn settled(&self, newest: u64) -> u64 {
        let slots = self.0.iter().flatten();
        slots.fold(newest, |newest, slot| match slot.work {
            Work::Change(change) => newest.min(change.sequence - 1),
            _ => newest,
        })
    }
}
