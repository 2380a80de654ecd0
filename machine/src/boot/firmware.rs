//! What a kernel that restarts its machine finds of a PC's firmware, of which there is no more than this.
//!
//! A kernel on hardware-reduced ACPI asks EFI for a reset, which it does not have, and then the BIOS: in real mode
//! it jumps to the [reset vector](layout::RESET_VECTOR), where code writes to the reset register. Before it tries
//! any of its ways, it leaves a [word](layout::RESTART_WORD) for the firmware; Linux does before each
//! (`native_machine_emergency_restart`). So a triple fault, which is its last way, is told from one that it did
//! not want. By the vCPU's own state it could not be: `kvm_amd` resets that before it tells.

use migration::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::board::{RESET_AND_SLEEP_PORT, RESET_VALUE};
use super::error::BootError;
use super::image::write;
use super::layout;

/// What the restart word holds while no kernel has written to it. Kernels write 0 (cold) or 0x1234 (warm).
const NO_RESTART: [u8; 2] = *b"VM";

/// Real-mode code: writes to the reset register, and halts where that should do nothing.
const fn reset_vector() -> [u8; 9] {
    let [low, high] = RESET_AND_SLEEP_PORT.to_le_bytes();
    // mov dx, PORT; mov al, VALUE; out dx, al; hlt; jmp back to the hlt
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Writes the code at the reset vector, and the word by which a restart is known.
pub(super) fn write_firmware(ram: &GuestRam) -> Result<(), BootError> {
    write(
        ram,
        "the reset vector",
        layout::RESET_VECTOR,
        &reset_vector(),
    )?;
    write(ram, "the restart word", layout::RESTART_WORD, &NO_RESTART)
}

/// Whether the guest's kernel has said that it restarts the machine. Of a guest that was booted without
/// [`write_firmware`], as by version 0.1, it is not known, and assumed.
pub fn restart_is_announced(ram: &GuestRam) -> bool {
    let mut word = NO_RESTART;
    // It lies in the first page of RAM, which every machine has.
    ram.read_slice(&mut word, GuestAddress(layout::RESTART_WORD))
        .is_ok_and(|()| word != NO_RESTART)
}

#[cfg(test)]
mod tests {
    use super::super::testing::ram;
    use super::*;

    #[test]
    fn a_restart_is_announced_by_what_kernels_write() {
        let ram = ram(4);
        write_firmware(&ram).unwrap();
        assert!(!restart_is_announced(&ram));
        for mode in [0_u16, 0x1234] {
            write_firmware(&ram).unwrap();
            ram.write_obj(mode, GuestAddress(layout::RESTART_WORD))
                .unwrap();
            assert!(restart_is_announced(&ram), "{mode:#x}");
        }
    }
}
