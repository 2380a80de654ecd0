//! Ways out.

use crate::clock::{Clock, poke, spin_us};
use crate::gate;

/// Powers off: ACPI sleep register as a port, the same as QEMU microvm's memory, QEMU's debug exit,
/// and where there is none of them, a triple fault.
pub fn off(clock: &Clock) -> ! {
    const S5: u8 = (5 << 2) | (1 << 5);
    gate::outb(0x600, S5);
    spin_us(clock, 20_000);
    poke(0xfea0_0200, S5);
    spin_us(clock, 20_000);
    gate::outb(0x501, 0);
    spin_us(clock, 20_000);
    gate::triple_fault()
}

/// Whether the power button was pressed: the generic event device's register, whose bits are
/// cleared by reading. Where the port is another's, it does not read as such a register would.
pub fn button_pressed() -> bool {
    const EVENTS: u16 = 0x604;
    const BUTTON: u8 = 1;
    gate::inb(EVENTS) == BUTTON && gate::inb(EVENTS) == 0
}

/// Masks the legacy interrupt controllers: nothing here takes an interrupt from them.
pub fn mask_legacy_interrupts() {
    gate::outb(0x21, 0xff);
    gate::outb(0xa1, 0xff);
}

/// Resets by the keyboard controller, and where there is none, by a triple fault.
pub fn reset(clock: &Clock) -> ! {
    gate::outb(0x64, 0xfe);
    spin_us(clock, 20_000);
    gate::triple_fault()
}
