//! What each unit of the region may hold: one word a unit, in RAM, so that it moves with the guest.

use crate::clock::{peek, poke};
use crate::units::State;

pub struct Table {
    memory: u64,
    pub units: u64,
}

impl Table {
    /// Memory of a table.
    pub fn bytes(units: u64) -> Option<u64> {
        units.checked_mul(8)
    }

    /// Nothing is known yet; `memory` is nobody else's.
    pub fn new(memory: u64, units: u64) -> Self {
        let this = Self { memory, units };
        for unit in 0..units {
            this.set(unit, State::Unknown);
        }
        this
    }

    pub fn get(&self, unit: u64) -> State {
        State::unpack(peek(self.memory + unit * 8))
    }

    pub fn set(&self, unit: u64, state: State) {
        poke(self.memory + unit * 8, state.pack());
    }
}
