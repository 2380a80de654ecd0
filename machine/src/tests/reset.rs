//! The ways in which a kernel resets its machine, by hand-made guests.

use std::time::Duration;

use crate::events::GuestEvent;
use crate::power::PauseReason;
use crate::tests::{has_kvm, machine};

/// What a guest with this code, loaded at 2 MiB, comes to.
fn end_of(code: &[u8]) -> GuestEvent {
    let (machine, ends) = machine(code);
    machine.resume(PauseReason::NotStarted).unwrap();
    let end = ends.recv_timeout(Duration::from_secs(20));
    end.expect("the guest ends")
}

#[track_caller]
fn resets(code: &[u8]) {
    if has_kvm() {
        let end = end_of(code);
        assert!(matches!(end, GuestEvent::Reset), "{end:?}");
    }
}

#[test]
fn the_reset_control_register_resets() {
    // mov edx, 0xcf9; mov al, 2; out dx, al; mov al, 0xe; out dx, al; hlt
    resets(&[
        0xba, 0xf9, 0x0c, 0, 0, 0xb0, 2, 0xee, 0xb0, 0x0e, 0xee, 0xf4,
    ]);
}

#[test]
fn a_word_at_the_pci_address_register_is_no_reset() {
    if !has_kvm() {
        return;
    }
    // mov edx, 0xcf8; mov eax, 0x80000400; out dx, eax; then power-off by port 0x600
    let probing = [
        0xba, 0xf8, 0x0c, 0, 0, 0xb8, 0, 0x04, 0, 0x80, 0xef, 0xba, 0, 0x06, 0, 0, 0xb0, 0x34,
        0xee, 0xf4,
    ];
    let end = end_of(&probing);
    assert!(matches!(end, GuestEvent::PowerOff), "{end:?}");
}

#[test]
fn the_reset_vector_resets() {
    let mut code = vec![0; 0x58];
    let mut put = |at: usize, bytes: &[u8]| code[at..at + bytes.len()].copy_from_slice(bytes);
    // lgdt [0x200040]; jmp far 8:0x20
    put(0, &[0x0f, 0x01, 0x15, 0x40, 0, 0x20, 0]);
    put(7, &[0xea, 0x20, 0, 0, 0, 0x08, 0]);
    // In a 16-bit segment: mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp far 0xf000:0xfff0
    put(0x20, &[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0]);
    put(0x28, &[0xea, 0xf0, 0xff, 0x00, 0xf0]);
    // The GDT's limit and address; the null descriptor; 16-bit code from 0x200000 on.
    put(0x40, &[0x0f, 0, 0x48, 0, 0x20, 0]);
    put(0x50, &[0xff, 0xff, 0, 0, 0x20, 0x9b, 0, 0]);
    resets(&code);
}

/// lidt of an empty table at 0x200040, then an instruction that is none.
const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0x40, 0, 0x20, 0, 0x0f, 0x0b];

/// The code with the empty table behind it.
fn with_empty_table(code: &[u8]) -> Vec<u8> {
    let mut code = code.to_vec();
    code.resize(0x48, 0);
    code
}

#[test]
fn an_announced_triple_fault_is_a_reset() {
    // mov word [0x472], 0
    let announced = [0x66, 0xc7, 0x05, 0x72, 0x04, 0, 0, 0, 0];
    resets(&with_empty_table(
        &[&announced[..], &TRIPLE_FAULT[..]].concat(),
    ));
}

#[test]
fn any_other_triple_fault_is_a_crash() {
    if !has_kvm() {
        return;
    }
    let end = end_of(&with_empty_table(&TRIPLE_FAULT));
    let GuestEvent::Failed(why) = end else {
        panic!("{end:?}");
    };
    assert_eq!(why.id, "guest.triple-fault", "{why}");
}
