//! A timer of the local APIC that the guest watches: whether it fires, and not before its time.

use crate::clock::{Clock, tsc};
use crate::{gate, lapic, shared};

const VECTOR: u32 = 0x41;
const DEADLINE_MSR: u32 = 0x6e0;
/// Late by so much, it counts as lost.
const LOST_NS: u64 = 2_000_000_000;
/// How often it is looked for, in microseconds.
const LOOK_US: u64 = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

unsafe extern "C" {
    static mut test_timer_fired: u64;
}

fn fired() -> u64 {
    // SAFETY: the handler of boot.s alone writes it, on this CPU.
    unsafe { (&raw const test_timer_fired).read_volatile() }
}

/// The timer and what was seen of it.
pub struct Timer {
    mode: Mode,
    period_us: u64,
    seen: u64,
    /// When it has to fire, by the monotonic clock; of a periodic one, the next time.
    due_ns: u64,
    look_at: u64,
    lost: bool,
    pub early: u64,
    pub latest_ns: u64,
}

impl Timer {
    pub fn start(mode: Mode, period_us: u64, clock: &Clock) -> Self {
        let lvt = match mode {
            Mode::OneShot => 0,
            Mode::Periodic => 1 << 17,
            Mode::Deadline => 2 << 17,
        };
        lapic::write(0x3e0, 0xb);
        lapic::write(0x320, VECTOR | lvt);
        let mut timer = Self {
            mode,
            period_us,
            seen: fired(),
            due_ns: 0,
            look_at: 0,
            lost: false,
            early: 0,
            latest_ns: 0,
        };
        timer.arm(clock);
        gate::interruptible();
        timer
    }

    pub fn fired(&self) -> u64 {
        self.seen
    }

    fn arm(&mut self, clock: &Clock) {
        let period_ns = self.period_us * 1000;
        self.due_ns = clock.mono_ns() + period_ns;
        match self.mode {
            // The APIC's bus runs at 1 GHz.
            Mode::OneShot => lapic::write(0x380, period_ns.min(u32::MAX.into()) as u32),
            Mode::Periodic if self.seen == 0 => {
                lapic::write(0x380, period_ns.min(u32::MAX.into()) as u32);
            }
            Mode::Periodic => {}
            Mode::Deadline => {
                gate::wrmsr(DEADLINE_MSR, tsc() + clock.cycles_of_us(self.period_us));
            }
        }
    }

    /// Looks whether it has fired.
    pub fn poll(&mut self, clock: &Clock) {
        let now = tsc();
        if now < self.look_at {
            return;
        }
        self.look_at = now + clock.cycles_of_us(LOOK_US);
        let count = fired();
        let mono = clock.mono_ns();
        if count == self.seen {
            if !self.lost && mono > self.due_ns + LOST_NS {
                self.lost = true;
                shared::fault("timer-lost", 0, self.due_ns, mono);
            }
            return;
        }
        self.seen = count;
        self.lost = false;
        // A periodic one counts on from where it stood, whenever it was seen.
        if self.mode != Mode::Periodic && mono + 1_000_000 < self.due_ns {
            self.early += 1;
        }
        self.latest_ns = self.latest_ns.max(mono.saturating_sub(self.due_ns));
        self.arm(clock);
    }
}
