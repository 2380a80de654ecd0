//! Loads of disks: docs/probe.md tells what they do. Each is polled by one CPU.

mod counts;
mod disk;
mod engine;
mod histogram;
mod options;
mod pace;
mod set_up;
mod slot;
mod slots;
mod stats;
mod table;

use core::sync::atomic::{AtomicUsize, Ordering};

pub use options::{LoadOptions, MAX_LOADS};

use crate::clock::Clock;
use crate::memory::BootInfo;
use engine::{Load, STOP, VERIFY};

const NOBODY: usize = usize::MAX;

/// The CPU that polls each load; nobody once it has ended.
static OWNERS: [AtomicUsize; MAX_LOADS] = [const { AtomicUsize::new(NOBODY) }; MAX_LOADS];
static mut LOADS: [Option<Load>; MAX_LOADS] = [const { None }; MAX_LOADS];

/// Sets up all loads before the other CPUs begin. Which of the disks behind `bases` they take, as bits.
pub fn set_up(
    options: &[Option<LoadOptions>; MAX_LOADS],
    bases: &[u64],
    seed: u64,
    info: &mut BootInfo,
    clock: &Clock,
    cpus: usize,
) -> u64 {
    set_up::set_up(
        options,
        bases,
        seed,
        info,
        clock,
        cpus,
        |number, cpu, load| {
            // SAFETY: nobody owns it yet.
            unsafe { (&raw mut LOADS[number]).write(Some(load)) };
            OWNERS[number].store(cpu, Ordering::Release);
        },
    )
}

/// Polls the loads of this CPU; whether it has any.
pub fn poll(cpu: usize) -> bool {
    let mut any = false;
    for (number, owner) in OWNERS.iter().enumerate() {
        if owner.load(Ordering::Acquire) != cpu {
            continue;
        }
        // SAFETY: its owner alone touches it, which is this CPU.
        let load = unsafe { &mut *(&raw mut LOADS[number]) };
        if load.as_mut().is_some_and(Load::poll) {
            any = true;
        } else {
            owner.store(NOBODY, Ordering::Release);
        }
    }
    any
}

/// Asks every load for a look at the whole of its region.
pub fn verify() {
    VERIFY.fetch_add(1, Ordering::Relaxed);
}

/// Asks every load to end.
pub fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// Whether all loads have ended, and that was told.
pub fn ended() -> bool {
    OWNERS
        .iter()
        .all(|owner| owner.load(Ordering::Acquire) == NOBODY)
}
