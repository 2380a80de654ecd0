//! Time: the TSC, and kvmclock where it is offered.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::gate;
use crate::shared::MAX_CPUS;

/// `pvclock_vcpu_time_info` of the KVM documentation (msr.rst, MSR_KVM_SYSTEM_TIME_NEW).
#[repr(C, align(64))]
struct PvClock {
    version: u32,
    pad0: u32,
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
    pad: [u8; 2],
}

const NO_CLOCK: PvClock = PvClock {
    version: 0,
    pad0: 0,
    tsc_timestamp: 0,
    system_time: 0,
    mul: 0,
    shift: 0,
    flags: 0,
    pad: [0; 2],
};

/// One for each CPU.
static mut PV_CLOCKS: [PvClock; MAX_CPUS] = [NO_CLOCK; MAX_CPUS];

/// `pvclock_wall_clock`: seconds and nanoseconds of the wall clock at kvmclock zero.
#[repr(C, align(16))]
struct WallClock {
    version: u32,
    seconds: u32,
    nanoseconds: u32,
}

static mut WALL_CLOCK: WallClock = WallClock {
    version: 0,
    seconds: 0,
    nanoseconds: 0,
};

/// Bits of `flags`.
const STABLE: u8 = 1;
const STOPPED: u8 = 2;

/// How often the hypervisor told that it had stopped the guest.
pub static STOPS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
pub struct Clock {
    pub tsc_khz: u64,
    pub kvmclock: bool,
    pub start: u64,
}

pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// The TSC after everything that was read before: a CPU may read it ahead of older loads, so that a time
/// which another CPU has told would seem to lie in the future (Intel SDM volume 2B, RDTSC).
fn tsc_in_order() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { _mm_lfence() };
    tsc()
}

/// TSC and APIC timer at the same moment: the closest of a few readings, since a busy host may
/// stop the CPU between the two.
fn sample() -> (u64, u32) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = tsc();
        let count = crate::lapic::read(0x390);
        let after = tsc();
        if after - before < best.0 {
            best = (after - before, before + (after - before) / 2, count);
        }
    }
    (best.1, best.2)
}

fn lapic_calibrate() -> u64 {
    // The APIC bus runs at 1 GHz in KVM and in QEMU; count 2 ms of it. With IF=0 the timer may end
    // as it likes: the next halt arms it anew.
    crate::lapic::write(0x380, u32::MAX);
    let (from, first) = sample();
    loop {
        let (now, left) = sample();
        let passed = u64::from(first.wrapping_sub(left));
        if passed >= 2_000_000 {
            return (now - from) * 1_000_000 / passed;
        }
        // An APIC timer that stands still: take 1 GHz rather than wait for ever.
        if now - from > 20_000_000_000 {
            return 1_000_000;
        }
    }
}

impl Clock {
    /// Finds the TSC's frequency; `given_khz` overrides everything that is not kvmclock.
    pub fn find(start: u64, given_khz: u64) -> Self {
        let hypervisor = gate::cpuid(0x4000_0000, 0);
        let kvm = hypervisor[1..] == [0x4b4d_564b, 0x564b_4d56, 0x4d];
        if kvm && gate::cpuid(0x4000_0001, 0)[0] & 8 != 0 {
            gate::wrmsr(0x4b56_4d00, &raw const WALL_CLOCK as u64);
            enable(0);
            let (mul, shift) = pv_scale(page(0));
            if mul != 0 {
                let khz = (1_000_000u64 << 32) / u64::from(mul);
                let tsc_khz = if shift < 0 {
                    khz << -shift
                } else {
                    khz >> shift
                };
                return Self {
                    tsc_khz,
                    kvmclock: true,
                    start,
                };
            }
        }
        let max = gate::cpuid(0, 0)[0];
        let mut tsc_khz = given_khz;
        if tsc_khz == 0 && max >= 0x15 {
            let [denominator, numerator, crystal, _] = gate::cpuid(0x15, 0);
            if denominator != 0 {
                tsc_khz = u64::from(crystal) / 1000 * u64::from(numerator) / u64::from(denominator);
            }
        }
        if tsc_khz == 0 && max >= 0x16 {
            tsc_khz = u64::from(gate::cpuid(0x16, 0)[0] & 0xffff) * 1000;
        }
        if tsc_khz == 0 {
            tsc_khz = lapic_calibrate().max(1);
        }
        Self {
            tsc_khz,
            kvmclock: false,
            start,
        }
    }

    pub fn us(&self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1000 / u128::from(self.tsc_khz)) as u64
    }

    pub fn cycles_of_us(&self, us: u64) -> u64 {
        (u128::from(us) * u128::from(self.tsc_khz) / 1000) as u64
    }

    /// Nanoseconds of kvmclock, or of the TSC since boot where there is none; on CPU 0.
    pub fn mono_ns(&self) -> u64 {
        self.mono_ns_of(0).0
    }

    /// The same on CPU `cpu`, and whether all CPUs see one time.
    pub fn mono_ns_of(&self, cpu: usize) -> (u64, bool) {
        if !self.kvmclock {
            let ns = u128::from(tsc_in_order() - self.start) * 1_000_000 / u128::from(self.tsc_khz);
            return (ns as u64, false);
        }
        let clock = page(cpu);
        loop {
            // SAFETY: the hypervisor writes the structure while we read; the version tells.
            unsafe {
                let before = read_volatile(&raw const (*clock).version);
                fence(Ordering::SeqCst);
                let stamp = read_volatile(&raw const (*clock).tsc_timestamp);
                let time = read_volatile(&raw const (*clock).system_time);
                let flags = read_volatile(&raw const (*clock).flags);
                let (mul, shift) = pv_scale(clock);
                let delta = tsc_in_order().wrapping_sub(stamp);
                fence(Ordering::SeqCst);
                if before & 1 == 0 && before == read_volatile(&raw const (*clock).version) {
                    let delta = if shift < 0 {
                        delta >> -shift
                    } else {
                        delta << shift
                    };
                    if flags & STOPPED != 0 {
                        write_volatile(&raw mut (*clock).flags, flags & !STOPPED);
                        STOPS.fetch_add(1, Ordering::Relaxed);
                    }
                    let ns = ((u128::from(delta) * u128::from(mul)) >> 32) as u64;
                    return (time.wrapping_add(ns), flags & STABLE != 0);
                }
            }
        }
    }

    /// The wall clock that the hypervisor told at boot, moved on by `mono_ns`; zero where it told none.
    pub fn wall_ns(&self, mono_ns: u64) -> u64 {
        let wall = &raw const WALL_CLOCK;
        // SAFETY: written by the hypervisor when the MSR was, and again when the guest is loaded.
        let (seconds, nanoseconds) = unsafe {
            (
                read_volatile(&raw const (*wall).seconds),
                read_volatile(&raw const (*wall).nanoseconds),
            )
        };
        if !self.kvmclock || seconds == 0 {
            return 0;
        }
        u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds) + mono_ns
    }
}

fn page(cpu: usize) -> *mut PvClock {
    // SAFETY: only the address is taken, of an element that exists.
    unsafe { &raw mut PV_CLOCKS[cpu.min(MAX_CPUS - 1)] }
}

/// Has the hypervisor tell the time to this CPU.
pub fn enable(cpu: usize) {
    gate::wrmsr(0x4b56_4d01, page(cpu) as u64 | 1);
}

fn pv_scale(clock: *const PvClock) -> (u32, i8) {
    // SAFETY: a static; the hypervisor may write it, hence volatile.
    unsafe {
        (
            read_volatile(&raw const (*clock).mul),
            read_volatile(&raw const (*clock).shift),
        )
    }
}

/// Waits without sleeping.
pub fn spin_us(clock: &Clock, us: u64) {
    let from = tsc();
    while tsc() - from < clock.cycles_of_us(us) {
        core::hint::spin_loop();
    }
}

/// Writes to memory that a device or another CPU may look at.
pub fn poke<T>(address: u64, value: T) {
    // SAFETY: callers pass addresses of mapped memory or registers.
    unsafe { write_volatile(address as *mut T, value) }
}

/// Reads what a device or another CPU may have written.
pub fn peek<T>(address: u64) -> T {
    // SAFETY: as for `poke`.
    unsafe { read_volatile(address as *const T) }
}
