//! What the CPUs share: counters, and a queue of faults that CPU 0 prints.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub const MAX_CPUS: usize = 16;

/// Counters of one CPU; written by it, read by CPU 0.
#[repr(align(64))]
pub struct Cpu {
    pub alive: AtomicBool,
    pub ready: AtomicBool,
    pub gap: AtomicU64,
    pub dirtied: AtomicU64,
    pub ledger_verified: AtomicU64,
    pub fill_verified: AtomicU64,
    pub units_written: AtomicU64,
    pub units_verified: AtomicU64,
}

pub static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        alive: AtomicBool::new(false),
        ready: AtomicBool::new(false),
        gap: AtomicU64::new(0),
        dirtied: AtomicU64::new(0),
        ledger_verified: AtomicU64::new(0),
        fill_verified: AtomicU64::new(0),
        units_written: AtomicU64::new(0),
        units_verified: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// The plan is complete and the other CPUs may begin.
pub static GO: AtomicBool = AtomicBool::new(false);

/// Faults found since boot.
pub static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Something lost, stale, torn or refused.
#[derive(Clone, Copy)]
pub struct Fault {
    pub kind: &'static str,
    pub gpa: u64,
    pub expected: u64,
    pub found: u64,
    /// The disk, where it is of one under load.
    pub disk: Option<usize>,
}

const QUEUE: usize = 64;
static LOCK: AtomicBool = AtomicBool::new(false);
static HEAD: AtomicUsize = AtomicUsize::new(0);
static TAIL: AtomicUsize = AtomicUsize::new(0);
static mut FAULT_QUEUE: [Fault; QUEUE] = [Fault {
    kind: "",
    gpa: 0,
    expected: 0,
    found: 0,
    disk: None,
}; QUEUE];

/// Counts a fault and queues it for printing; when the queue is full it is only counted.
pub fn fault(kind: &'static str, gpa: u64, expected: u64, found: u64) {
    report(Fault {
        kind,
        gpa,
        expected,
        found,
        disk: None,
    });
}

/// As [`fault`], for one that is made elsewhere.
pub fn report(fault: Fault) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let tail = TAIL.load(Ordering::Relaxed);
    if tail - HEAD.load(Ordering::Acquire) < QUEUE {
        // SAFETY: the lock is held, and CPU 0 reads only entries before TAIL.
        unsafe {
            (&raw mut FAULT_QUEUE[tail % QUEUE]).write(fault);
        }
        TAIL.store(tail + 1, Ordering::Release);
    }
    LOCK.store(false, Ordering::Release);
}

/// Takes the oldest queued fault; for CPU 0 only.
pub fn next_fault() -> Option<Fault> {
    let head = HEAD.load(Ordering::Relaxed);
    if head == TAIL.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: the entry was published by the store to TAIL, and is not reused before HEAD moves.
    let fault = unsafe { (&raw const FAULT_QUEUE[head % QUEUE]).read() };
    HEAD.store(head + 1, Ordering::Release);
    Some(fault)
}

/// Adds up a counter of all CPUs.
pub fn sum(counter: impl Fn(&Cpu) -> &AtomicU64) -> u64 {
    CPUS.iter()
        .map(|cpu| counter(cpu).load(Ordering::Relaxed))
        .sum()
}

/// Largest gap of any CPU since the last call.
pub fn take_gap() -> u64 {
    CPUS.iter()
        .map(|cpu| cpu.gap.swap(0, Ordering::Relaxed))
        .max()
        .unwrap_or(0)
}
