//! The local APIC: its timer, and starting the other CPUs.

use core::sync::atomic::Ordering;

use crate::clock::{Clock, peek, poke, spin_us};
use crate::shared::CPUS;

const BASE: u64 = 0xfee0_0000;
const TRAMPOLINE: u64 = 0x8000;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static mut ap_index: u64;
}

pub fn read(register: u64) -> u32 {
    peek(BASE + register)
}

pub fn write(register: u64, value: u32) {
    poke(BASE + register, value);
}

/// Enables this CPU's APIC with a one-shot timer on vector 0x40.
pub fn enable() {
    write(0xf0, 0x1ff);
    write(0x3e0, 0xb);
    write(0x320, 0x40);
}

/// Starts the CPU with this APIC id as number `index`; false when it does not answer.
pub fn start_cpu(clock: &Clock, index: usize, apic_id: u8) -> bool {
    let from = &raw const ap_trampoline;
    // SAFETY: both are labels of boot.s, and low memory is ours once the boot information is read.
    unsafe {
        let len = (&raw const ap_trampoline_end).offset_from(from) as usize;
        core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len);
        (&raw mut ap_index).write_volatile(index as u64);
    }
    let send = |command: u32| {
        write(0x310, u32::from(apic_id) << 24);
        write(0x300, command);
        while read(0x300) & 0x1000 != 0 {}
    };
    send(0x4500);
    spin_us(clock, 100);
    for _ in 0..2 {
        send(0x4600 | (TRAMPOLINE >> 12) as u32);
        for _ in 0..2000 {
            if CPUS[index].alive.load(Ordering::Acquire) {
                return true;
            }
            spin_us(clock, 50);
        }
    }
    false
}
