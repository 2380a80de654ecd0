//! Calls through the gate to CPL0.

use core::arch::{asm, global_asm};

global_asm!(include_str!("boot.s"), options(att_syntax, raw));

/// One ledger write for [`dirty`]; the layout that `gate_dirty` reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DirtyWrite {
    pub page: u64,
    pub sequence: u64,
    pub index: u64,
    pub value: u64,
}

fn call(function: u64, rdi: u64, rsi: u64, rdx: u64, rcx: u64) -> u64 {
    let result;
    // SAFETY: the gate changes only the registers named here and memory that the caller passed.
    unsafe {
        asm!("int3", inout("rax") function => result, inout("rdi") rdi => _, inout("rsi") rsi => _,
            inout("rdx") rdx => _, inout("rcx") rcx => _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _);
    }
    result
}

/// Sends at most 16 bytes to the serial port; false when it is not ready.
pub fn serial_out(bytes: &[u8]) -> bool {
    bytes.is_empty() || call(0, 0, bytes.as_ptr() as u64, 0, bytes.len().min(16) as u64) != 0
}

pub fn inb(port: u16) -> u8 {
    call(1, 0, 0, port.into(), 0) as u8
}

pub fn outb(port: u16, value: u8) {
    call(2, 0, 0, port.into(), value.into());
}

pub fn wrmsr(register: u32, value: u64) {
    call(4, value, 0, 0, register.into());
}

/// CPUID as the VMM set it: under kvm_pvm the instruction at CPL3 would show the host's.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut answer = [0; 4];
    call(
        5,
        answer.as_mut_ptr() as u64,
        leaf.into(),
        0,
        subleaf.into(),
    );
    answer
}

/// Sleeps for `count` cycles of the APIC bus (1 GHz).
pub fn halt(count: u32) {
    call(6, count.max(1).into(), 0, 0, 0);
}

/// Does at most eight ledger writes at CPL0: more would keep the vCPU from stopping at once.
pub fn dirty(writes: &[DirtyWrite]) {
    if !writes.is_empty() {
        call(7, writes.as_ptr() as u64, 0, 0, writes.len().min(8) as u64);
    }
}

/// Lets this CPU take interrupts at CPL3; they were only taken in a halt before.
pub fn interruptible() {
    call(9, 0, 0, 0, 0);
}

pub fn triple_fault() -> ! {
    loop {
        call(8, 0, 0, 0, 0);
    }
}
