//! The keyboard controller without a keyboard: guests reset the machine through it.

use std::sync::{Arc, Mutex};

use super::{I8042StateV1, PowerControl};
use crate::Result;
use crate::bus::BusDevice;
use crate::locked::locked;

/// Ports that it takes, from 0x60 on: data at 0, command and status at 4.
pub const I8042_PORTS: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// The system flag: the controller passed its self-test.
const STATUS_SYSTEM: u8 = 1 << 2;
/// The keyboard is not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;

const READ_CONFIGURATION: u8 = 0x20;
const WRITE_CONFIGURATION: u8 = 0x60;
const TEST_SECOND_PORT: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_FIRST_PORT: u8 = 0xab;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const WRITE_FIRST_OUTPUT: u8 = 0xd2;
const WRITE_SECOND_OUTPUT: u8 = 0xd3;
const WRITE_SECOND_PORT: u8 = 0xd4;
/// Commands 0xf0 to 0xff pulse those lines of the output port whose bits are 0; line 0 is the reset.
const PULSE: u8 = 0xf0;

const SELF_TEST_PASSED: u8 = 0x55;
/// Port test: the clock line is stuck low, which is what an empty socket looks like.
const NOTHING_CONNECTED: u8 = 0x01;
/// Output port: not in reset, A20 open.
const OUTPUT_PORT: u8 = 0x03;
/// Both ports and both interrupts off, self-test passed.
const CONFIGURATION: u8 = 0x34;

/// A PS/2 controller with nothing connected.
pub struct I8042 {
    power: Arc<dyn PowerControl>,
    state: Mutex<I8042StateV1>,
}

impl I8042 {
    /// A controller that resets the machine through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        let state = I8042StateV1 {
            configuration: CONFIGURATION,
            awaiting: 0,
            output: None,
        };
        Self {
            power,
            state: Mutex::new(state),
        }
    }

    /// All registers.
    pub fn save(&self) -> I8042StateV1 {
        locked(&self.state).clone()
    }

    /// Takes the place of a controller that was saved.
    ///
    /// # Errors
    /// None: a guest can bring the controller into any state.
    pub fn load(&self, state: I8042StateV1) -> Result<()> {
        *locked(&self.state) = state;
        Ok(())
    }

    fn command(&self, command: u8) {
        let mut state = locked(&self.state);
        state.awaiting = 0;
        match command {
            READ_CONFIGURATION => state.output = Some(state.configuration),
            SELF_TEST => state.output = Some(SELF_TEST_PASSED),
            TEST_FIRST_PORT | TEST_SECOND_PORT => state.output = Some(NOTHING_CONNECTED),
            READ_OUTPUT_PORT => state.output = Some(OUTPUT_PORT),
            WRITE_CONFIGURATION | WRITE_OUTPUT_PORT | WRITE_FIRST_OUTPUT | WRITE_SECOND_OUTPUT
            | WRITE_SECOND_PORT => state.awaiting = command,
            PULSE.. if command & 1 == 0 => {
                drop(state);
                self.power.reset();
            }
            _ => {}
        }
    }

    fn data(&self, byte: u8) {
        let mut state = locked(&self.state);
        match std::mem::take(&mut state.awaiting) {
            WRITE_CONFIGURATION => state.configuration = byte,
            WRITE_FIRST_OUTPUT | WRITE_SECOND_OUTPUT => state.output = Some(byte),
            WRITE_OUTPUT_PORT if byte & 1 == 0 => {
                drop(state);
                self.power.reset();
            }
            // Sent to a keyboard or mouse that is not there.
            _ => {}
        }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The ports between belong to devices that do not exist here.
        data.fill(0xff);
        let [byte] = data else { return };
        let mut state = locked(&self.state);
        match offset {
            DATA => *byte = state.output.take().unwrap_or(0),
            COMMAND => {
                let full = if state.output.is_some() {
                    STATUS_OUTPUT_FULL
                } else {
                    0
                };
                *byte = full | STATUS_SYSTEM | STATUS_UNLOCKED;
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (DATA, &[byte]) => self.data(byte),
            (COMMAND, &[byte]) => self.command(byte),
            _ => {}
        }
    }
}

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("I8042")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
