//! vCPUs that share the processors with threads that move their guest's memory.

use std::time::{Duration, Instant};

use rustix::thread::sched_getaffinity;

use crate::memory::PageBacking;
use crate::power::PauseReason;
use crate::tests::has_kvm;
use crate::tests::probe::{Probe, Setup};

/// More threads than there are processors anywhere.
const MANY: usize = 1 << 20;

fn spinning(cpus: u32) -> Probe {
    let probe = Probe::start(&Setup {
        cpus,
        memory: 64 << 20,
        pages: PageBacking::Small,
        disk: None,
        cmdline: "fill=random fill_size=4M dirty_set=2M dirty_rate=1000 idle=spin tick_ms=20",
    });
    probe.ready();
    probe
}

/// Waits until vCPUs yielded `yields` times more than now.
fn more(probe: &Probe, yields: u64) {
    let machine = probe.machine();
    let awaited = machine.vcpu_yields() + yields;
    let deadline = Instant::now() + Duration::from_secs(60);
    while machine.vcpu_yields() < awaited {
        let seen = machine.vcpu_yields();
        assert!(Instant::now() < deadline, "{seen} of {awaited} yields");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_guest_that_spins_yields_until_told_not_to() {
    if !has_kvm() {
        return;
    }
    let probe = spinning(2);
    let machine = probe.machine();
    let before = probe.tick();
    assert_eq!(machine.vcpu_yields(), 0);
    machine.share_processors(MANY);
    more(&probe, 100);
    // A time slice that a pause cut short is not waited for.
    for _ in 0..3 {
        machine.pause(PauseReason::Migration).unwrap();
        machine.resume(PauseReason::Migration).unwrap();
        more(&probe, 20);
    }
    machine.share_processors(0);
    machine.pause(PauseReason::Migration).unwrap();
    let seen = machine.vcpu_yields();
    machine.resume(PauseReason::Migration).unwrap();
    probe.tick();
    let after = probe.tick();
    assert_eq!(machine.vcpu_yields(), seen);
    assert_eq!(after.faults, 0);
    assert!(after.ledger_verified > before.ledger_verified);
}

#[test]
fn a_guest_that_leaves_all_the_time_yields_too() {
    if !has_kvm() {
        return;
    }
    // A line each millisecond, an exit for each character of it: timers go off outside of the guest too.
    let probe = Probe::start(&Setup {
        cpus: 1,
        memory: 64 << 20,
        pages: PageBacking::Small,
        disk: None,
        cmdline: "idle=spin tick_ms=1",
    });
    probe.ready();
    probe.machine().share_processors(MANY);
    more(&probe, 1000);
    assert_eq!(probe.tick().faults, 0);
}

#[test]
fn a_vcpu_keeps_its_processor_where_there_are_some_to_spare() {
    if !has_kvm() {
        return;
    }
    let processors = sched_getaffinity(None).unwrap().count() as usize;
    if processors < 2 {
        println!("skipped: there is one processor");
        return;
    }
    let probe = spinning(1);
    probe.machine().share_processors(processors - 1);
    probe.tick();
    probe.tick();
    assert_eq!(probe.machine().vcpu_yields(), 0);
}
