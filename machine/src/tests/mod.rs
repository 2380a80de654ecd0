//! Machines on the real KVM with hand-made guests.

mod agreement;
mod clock;
mod component;
mod golden;
mod huge_page;
mod moving;
mod net;
mod probe;
mod reset;
mod time_slice;

use std::io::Write;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::boot::refusal::KvmBackend;
use crate::boot::testing::pvh_elf;
use crate::boot::{self, BootPlan, KernelSource};
use crate::build::mmio_slots;
use crate::build::spec::CpuDemands;
use crate::build::spec::MachineSpec;
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::disks::DiskClaim;
use crate::events::GuestEvent;
use crate::events::GuestEvents;
use crate::kvm::slots::DirtyLog;
use crate::machine::Machine;
use crate::memory::{PageBacking, RamFile};
use crate::power::PauseReason;
use crate::state::{Form, RunStateV1};
use crate::{cpuid, kvm, memory};

/// Where the guest counts.
const COUNTER: u64 = 0x30_0000;

/// 32-bit code: prints `P` on the serial port, then counts at [`COUNTER`] for ever.
pub(crate) const COUNTING: [u8; 16] = [
    0xba, 0xf8, 0x03, 0, 0, 0xb0, b'P', 0xee, 0xff, 0x05, 0, 0, 0x30, 0, 0xeb, 0xf8,
];

fn spec(cpus: u32) -> MachineSpec {
    let kvm = kvm::open().unwrap();
    MachineSpec {
        memory: 16 << 20,
        pages: PageBacking::Small,
        cpuid: (0..cpus)
            .map(|i| cpuid::leaves(&cpuid::build(&kvm, cpus, i).unwrap()))
            .collect(),
        cpu: CpuDemands::default(),
        backend: KvmBackend::detect(),
        disks: Vec::new(),
        nets: Vec::new(),
    }
}

pub(crate) fn has_kvm() -> bool {
    let opened = kvm::open();
    if let Err(e) = &opened {
        println!("skipped: {e}");
    }
    opened.is_ok()
}

pub(crate) fn machine(code: &[u8]) -> (Machine, Receiver<GuestEvent>) {
    machine_on(&ConsoleHub::start(ConsoleOutputs::default()).unwrap(), code)
}

/// A machine whose guest prints on `console`.
pub(crate) fn machine_on(console: &ConsoleHub, code: &[u8]) -> (Machine, Receiver<GuestEvent>) {
    let (events, ends) = GuestEvents::new();
    let machine = Machine::build(
        RamFile::memfd(),
        spec(1),
        &[],
        DiskClaim::Owner,
        console,
        &events,
    )
    .unwrap();
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&pvh_elf(code, 0)).unwrap();
    let plan = BootPlan {
        kernel: &KernelSource::File(kernel.path().to_owned()),
        initrd: None,
        cmdline: "",
        cpus: 1,
        ram: machine.ram(),
        mmio_slots: &mmio_slots(0, 0),
        generation_id: [7; 16],
    };
    machine
        .set_boot_registers(&boot::load(&plan).unwrap())
        .unwrap();
    (machine, ends)
}

pub(crate) fn count(machine: &Machine) -> u32 {
    machine.ram().read_obj(GuestAddress(COUNTER)).unwrap()
}

pub(crate) fn wait_for_count_beyond(machine: &Machine, seen: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while count(machine) <= seen {
        assert!(
            Instant::now() < deadline,
            "the guest does not count beyond {seen}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    assert_eq!(count(&machine), 0);
    machine.resume(PauseReason::NotStarted).unwrap();
    wait_for_count_beyond(&machine, 0);
    machine.pause(PauseReason::User).unwrap();
    let seen = count(&machine);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(count(&machine), seen);
    machine.resume(PauseReason::User).unwrap();
    wait_for_count_beyond(&machine, seen);
}

#[test]
fn a_loaded_guest_goes_on_where_it_was_saved() {
    if !has_kvm() {
        return;
    }
    let (mut machine, _ends) = machine(&COUNTING);
    machine.resume(PauseReason::NotStarted).unwrap();
    for _ in 0..50 {
        let before = count(&machine);
        wait_for_count_beyond(&machine, before);
        machine.pause(PauseReason::Migration).unwrap();
        let saved = machine.save(RunStateV1::Running).unwrap();
        let (ram, spec) = (machine.ram().clone(), machine.spec().clone());
        let at = count(&machine);
        drop(machine);
        let (events, _ends) = GuestEvents::new();
        let console = ConsoleHub::start(ConsoleOutputs::default()).unwrap();
        machine = Machine::build_on(ram, spec, &[], DiskClaim::Owner, &console, &events).unwrap();
        assert_eq!(machine.load(&saved).unwrap(), RunStateV1::Running);
        let again = machine.save(RunStateV1::Running).unwrap();
        assert_eq!(again.len(), saved.len());
        machine.resume(PauseReason::NotStarted).unwrap();
        wait_for_count_beyond(&machine, at);
    }
}

#[test]
fn a_rehearsal_lets_a_running_guest_go_on_and_wakes_none_that_stands() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    machine.rehearse().unwrap();
    assert_eq!(count(&machine), 0, "it was not started yet");
    machine.resume(PauseReason::NotStarted).unwrap();
    for _ in 0..20 {
        wait_for_count_beyond(&machine, count(&machine));
        let measured = machine.rehearse().unwrap();
        assert!(!measured.stop.is_zero() && !measured.save.is_zero());
    }
    machine.pause(PauseReason::User).unwrap();
    let stood = count(&machine);
    machine.rehearse().unwrap();
    machine.rehearse().unwrap();
    assert_eq!(count(&machine), stood, "its user had paused it");
    machine.resume(PauseReason::User).unwrap();
    wait_for_count_beyond(&machine, stood);
}

#[test]
fn marks_of_what_was_loaded_are_dropped_and_later_ones_are_not() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    machine.set_dirty_log(DirtyLog::On).unwrap();
    let pages = (16 << 20) / 4096_usize;
    machine
        .clear_vcpu_writes(0, 0, &vec![u64::MAX; pages / 64])
        .unwrap();
    machine.drop_device_writes();
    machine
        .ram()
        .write_slice(b"device", GuestAddress(0x5000))
        .unwrap();
    let mut dirty = vec![vec![0_u64; pages / 64]];
    machine.read_vcpu_writes(&mut dirty).unwrap();
    assert!(dirty[0].iter().all(|word| *word == 0));
    machine.take_device_writes(&mut dirty).unwrap();
    assert_eq!(dirty[0][0], 1 << 5);
    assert!(dirty[0][1..].iter().all(|word| *word == 0));
}

#[test]
fn a_write_after_its_page_was_cleared_is_logged_again() {
    if !has_kvm() {
        return;
    }
    let (machine, _ends) = machine(&COUNTING);
    machine.set_dirty_log(DirtyLog::On).unwrap();
    machine.resume(PauseReason::NotStarted).unwrap();
    wait_for_count_beyond(&machine, 0);
    let pages = (16 << 20) / 4096_usize;
    let page = (COUNTER / 4096) as usize;
    machine
        .clear_vcpu_writes(0, 0, &vec![u64::MAX; pages / 64])
        .unwrap();
    let seen = count(&machine);
    wait_for_count_beyond(&machine, seen);
    let mut dirty = vec![vec![0_u64; pages / 64]];
    machine.read_vcpu_writes(&mut dirty).unwrap();
    assert_ne!(
        dirty[0][page / 64] & (1 << (page % 64)),
        0,
        "the counter's page is dirty"
    );
    let clean = dirty[0].iter().map(|w| w.count_zeros()).sum::<u32>();
    assert!(
        clean as usize > pages - 64,
        "pages that nobody wrote are clean"
    );
}

#[test]
fn an_instruction_that_kvm_cannot_run_is_named() {
    if !has_kvm() {
        return;
    }
    if !KvmBackend::detect().is_pvm() {
        println!("skipped: this host's KVM runs every instruction");
        return;
    }
    // popcnt eax, eax
    let (machine, ends) = machine(&[0xf3, 0x0f, 0xb8, 0xc0]);
    machine.resume(PauseReason::NotStarted).unwrap();
    let GuestEvent::Failed(why) = ends.recv_timeout(Duration::from_secs(10)).unwrap() else {
        panic!("the guest did not fail");
    };
    assert!(why.message.contains("popcnt"), "{why}");
    assert!(why.message.contains("kvm_amd"), "{why}");
}

#[test]
fn a_state_of_another_machine_is_refused() {
    if !has_kvm() {
        return;
    }
    let (one, _ends) = machine(&COUNTING);
    let newest = one.save(RunStateV1::Running).unwrap();
    let first = one.save_as(RunStateV1::Running, &Form::One).unwrap();
    let (events, _ends) = GuestEvents::new();
    let console = ConsoleHub::start(ConsoleOutputs::default()).unwrap();
    let ram = memory::allocate(RamFile::memfd(), 16 << 20).unwrap();
    let two = Machine::build_on(ram, spec(2), &[], DiskClaim::Owner, &console, &events).unwrap();
    for (saved, said) in [(newest, "lacks vcpu.1"), (first, "1 vCPUs, not 2")] {
        let error = two.load(&saved).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        for cut in (0..saved.len()).step_by(97) {
            assert!(one.load(&saved[..cut]).is_err());
        }
    }
}
