//! The clock of a machine that is saved and loaded, next to the host's.

use std::time::{Duration, Instant};

use crate::clock::{self, ClockStateV1, TimeBounds};
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::disks::DiskClaim;
use crate::events::GuestEvents;
use crate::machine::Machine;
use crate::power::PauseReason;
use crate::state::components;
use crate::state::{Form, MachineState, RunStateV1};
use crate::tests::{COUNTING, count, has_kvm, machine, wait_for_count_beyond};

/// What a clock may be off after a move.
const TOLERANCE: Duration = Duration::from_millis(5);
const HOUR: u64 = 3_600_000_000_000;

/// The guest's clock, and a moment of the host's between which it was read.
fn reading(machine: &Machine) -> (Instant, ClockStateV1, Instant) {
    // Torn apart by a busy host: again.
    for _ in 0..100 {
        let before = Instant::now();
        let clock = clock::save(&machine.vm, machine.tsc).unwrap();
        let after = Instant::now();
        if after - before < Duration::from_millis(1) {
            return (before, clock, after);
        }
    }
    panic!("the clock cannot be read at once");
}

/// Saves, changes what the state says of the wall clock, and loads into another machine.
fn moved(
    from: Machine,
    wall: impl Fn(u64) -> Option<u64>,
    bounds: impl Fn(Instant, Instant) -> TimeBounds,
) -> Machine {
    let before = Instant::now();
    let blob = from.save(RunStateV1::Running).unwrap();
    let after = Instant::now();
    let mut state = MachineState::decode(&blob, from.spec()).unwrap();
    state.clock.realtime_ns = wall(state.clock.realtime_ns.unwrap());
    let newest = components::of(from.spec()).newest();
    let blob = state.encode(&Form::Components(newest)).unwrap();
    let (ram, spec) = (from.ram().clone(), from.spec().clone());
    drop(from);
    let (events, _ends) = GuestEvents::new();
    let console = ConsoleHub::start(ConsoleOutputs::default()).unwrap();
    let to = Machine::build_on(ram, spec, &[], DiskClaim::Owner, &console, &events).unwrap();
    to.load_saved(&blob, bounds(before, after)).unwrap();
    to
}

/// What the engine knows of when the state was saved.
fn known(before: Instant, after: Instant) -> TimeBounds {
    TimeBounds {
        earliest: Some(before),
        latest: Some(after),
    }
}

#[test]
fn the_clock_goes_on_by_the_real_time_whatever_the_wall_clocks_say() {
    if !has_kvm() {
        return;
    }
    type Shift = fn(u64) -> Option<u64>;
    let shifts: [(&str, Shift); 5] = [
        ("as they are", Some),
        ("the destination is an hour behind", |t| Some(t + HOUR)),
        ("the destination is an hour ahead", |t| Some(t - HOUR)),
        ("the destination is 30 ms ahead", |t| Some(t - 30_000_000)),
        ("none", |_| None),
    ];
    let (mut machine, _ends) = machine(&COUNTING);
    machine.resume(PauseReason::NotStarted).unwrap();
    wait_for_count_beyond(&machine, 0);
    machine.pause(PauseReason::Migration).unwrap();
    for (what, shift) in shifts {
        let (from, then, from_end) = reading(&machine);
        machine = moved(machine, shift, known);
        let (to, now, to_end) = reading(&machine);
        assert!(now.kvmclock_ns >= then.kvmclock_ns, "{what}: it went back");
        let guest = Duration::from_nanos(now.kvmclock_ns - then.kvmclock_ns);
        let (least, most) = (to - from_end, to_end - from);
        println!("{what}: {guest:?} of {least:?} to {most:?}");
        assert!(
            guest + TOLERANCE >= least && guest <= most + TOLERANCE,
            "{what}: {guest:?} passed, not {least:?} to {most:?}"
        );
        // Its TSC keeps to the same time.
        let cycles = machine.tsc.cycles(guest.as_nanos() as u64);
        let ticked = now.host_tsc.unwrap() - then.host_tsc.unwrap();
        let tolerance = machine.tsc.cycles(TOLERANCE.as_nanos() as u64);
        assert!(
            cycles.abs_diff(ticked) <= tolerance,
            "{what}: {cycles} {ticked}"
        );
    }
}

#[test]
fn without_bounds_a_wall_clock_that_is_behind_takes_nothing_back() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    let (_, then, _) = reading(&machine);
    let machine = moved(machine, |t| Some(t + HOUR), |_, _| TimeBounds::default());
    let (_, now, _) = reading(&machine);
    assert!(now.kvmclock_ns >= then.kvmclock_ns);
    assert!(now.kvmclock_ns - then.kvmclock_ns < HOUR / 2);
}

#[test]
fn the_same_host_keeps_the_offset_of_the_tsc() {
    if !has_kvm() {
        return;
    }
    let (mut machine, _ends) = machine(&COUNTING);
    let offset = |machine: &Machine| crate::kvm::ioctl::get_tsc_offset(&machine.vcpus.fd(0)).ok();
    let first = offset(&machine);
    for _ in 0..3 {
        machine = moved(machine, Some, |_, _| TimeBounds::default());
        assert_eq!(
            offset(&machine),
            first,
            "the same host keeps it to the cycle"
        );
    }
}

/// Cycles of the PIT, at 1.193182 MHz, from one tick of [`PIT_TICKS`] to the next: 10 ms.
const PIT_CYCLES: u32 = 11_932;
const PIT_PERIOD: Duration = Duration::from_millis(10);

/// 32-bit code that counts the ticks of a PIT: it lets through nothing but IRQ 0, has channel 0 tick every
/// [`PIT_CYCLES`] (mode 2), and polls the interrupt controller (8259A, OCW3), which acknowledges.
#[rustfmt::skip]
const PIT_TICKS: [u8; 50] = [
    0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
    0xb0, 0xfe, 0xe6, 0x21,
    0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x9c, 0xe6, 0x40, 0xb0, 0x2e, 0xe6, 0x40,
    0xb0, 0x0c, 0xe6, 0x20, 0xe4, 0x20, 0xa8, 0x07, 0x75, 0xf6,
    0xff, 0x05, 0, 0, 0x30, 0, 0xeb, 0xee,
];

#[test]
fn the_timer_of_a_pit_goes_on_at_its_pace() {
    if !has_kvm() {
        return;
    }
    let (mut machine, _ends) = machine(&PIT_TICKS);
    let began = Instant::now();
    machine.resume(PauseReason::NotStarted).unwrap();
    for _ in 0..10 {
        wait_for_count_beyond(&machine, count(&machine) + 2);
        machine.pause(PauseReason::Migration).unwrap();
        machine = moved(machine, Some, known);
        let channel = machine.vm.get_pit2().unwrap().channels[0];
        assert_eq!((channel.count, channel.mode), (PIT_CYCLES, 2));
        machine.resume(PauseReason::NotStarted).unwrap();
    }
    wait_for_count_beyond(&machine, count(&machine) + 2);
    machine.pause(PauseReason::Migration).unwrap();
    let due = began.elapsed().as_micros() / PIT_PERIOD.as_micros();
    let ticks = u128::from(count(&machine));
    println!("{ticks} ticks, {due} were due");
    assert!(ticks <= due + 1, "{ticks} ticks, {due} were due");
}
