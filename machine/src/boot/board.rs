//! Ports, events and names that the ACPI tables tell of, and the devices behind them answer to.

/// Byte port that is the reset register and the sleep control and status registers.
pub const RESET_AND_SLEEP_PORT: u16 = 0x600;
/// What the guest writes there to reset the machine.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of power-off: the guest writes `type << 2 | 1 << 5` to the sleep control register.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Byte port from which the guest reads, and so clears, the pending events.
pub const EVENT_PORT: u16 = 0x604;
/// Interrupt that tells the guest of pending events.
pub const EVENT_GSI: u32 = 9;
/// Event bit: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Event bit: the generation id has changed.
pub const EVENT_GENERATION_ID: u8 = 1 << 1;

pub(super) const OEM: [u8; 6] = *b"VMM   ";
pub(super) const OEM_TABLE: [u8; 8] = *b"VMMBOARD";
pub(super) const OEM_REVISION: u32 = 1;
