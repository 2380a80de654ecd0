//! What the compiler expects to find: memory functions, a panic handler; and the exception report.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::gate;
use crate::serial::Serial;

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("rep movsb", inout("rdi") target => _, inout("rsi") source => _, inout("rcx") len => _);
    }
    target
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    if (target as usize).wrapping_sub(source as usize) >= len {
        // SAFETY: forwards is right when the target does not begin within the source.
        return unsafe { memcpy(target, source, len) };
    }
    // SAFETY: the caller's contract; backwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") target.add(len).wrapping_sub(1) => _,
            inout("rsi") source.add(len).wrapping_sub(1) => _, inout("rcx") len => _);
    }
    target
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(target: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe {
        asm!("rep stosb", inout("rdi") target => _, in("al") byte as u8, inout("rcx") len => _);
    }
    target
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller's contract; volatile keeps this from becoming a call of itself.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Where boot.s sends every exception, at CPL3 on the emergency stack.
#[unsafe(no_mangle)]
extern "C" fn exception_report(vector: u64, error: u64, rip: u64, cr2: u64, cs: u64) -> ! {
    let mut out = Serial::new();
    out.line(format_args!(
        "fault kind=exception gpa={cr2:#x} expected=0x0 found={vector:#x} error={error:#x} \
         rip={rip:#x} cs={cs:#x}"
    ));
    out.line(format_args!("bye reason=exception"));
    out.flush();
    gate::triple_fault()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut out = Serial::new();
    let line = info.location().map_or(0, core::panic::Location::line);
    out.line(format_args!(
        "fault kind=panic gpa=0x0 expected=0x0 found={line:#x}"
    ));
    out.line(format_args!("bye reason=panic"));
    out.flush();
    gate::triple_fault()
}
