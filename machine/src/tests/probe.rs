//! The probe guest in a machine: what it says about its memory, its disk and its clock after it was
//! saved and loaded.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use control::rotating_file::RotatingFile;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::refusal::KvmBackend;
use crate::boot::{self, BootPlan, KernelSource};
use crate::build::mmio_slots;
use crate::build::spec::CpuDemands;
use crate::build::spec::{DiskAccess, DiskSpec, ImageFormat, MachineSpec};
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::debug::DebugLayers;
use crate::disks::{DiskClaim, DiskOwner, DiskSource};
use crate::events::GuestEvent;
use crate::events::GuestEvents;
use crate::kvm::slots::DirtyLog;
use crate::machine::Machine;
use crate::memory::{PageBacking, RamFile};
use crate::power::PauseReason;
use crate::probe::{PROBE_GUEST, ProbeLine, Tick, probe_lines};
use crate::state::RunStateV1;
use crate::tests::has_kvm;
use crate::{cpuid, kvm};

/// How long the guest may take to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine that a probe is to run in.
pub(crate) struct Setup<'a> {
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) pages: PageBacking,
    pub(crate) disk: Option<u64>,
    pub(crate) cmdline: &'a str,
}

/// A probe guest and all that it said.
pub(crate) struct Probe {
    files: tempfile::TempDir,
    console: ConsoleHub,
    disks: Vec<DiskSource>,
    machine: Option<Machine>,
    ends: Receiver<GuestEvent>,
}

impl Probe {
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let files = tempfile::tempdir().unwrap();
        let console = ConsoleHub::start(ConsoleOutputs {
            log: Some(RotatingFile::create(&files.path().join("log"), 1 << 30).unwrap()),
            ..ConsoleOutputs::default()
        })
        .unwrap();
        let disks: Vec<DiskSource> = setup
            .disk
            .map(|size| {
                let path = files.path().join("disk.raw");
                File::create(&path).unwrap().set_len(size).unwrap();
                DiskSource {
                    owner: DiskOwner::AsTheMachine,
                    format: block::image::Format::Raw,
                    backing: Default::default(),
                    id: "disk0".into(),
                    path,
                    access: DiskAccess::ReadWrite,
                    content: block::Content::Raw,
                    expected_size: Some(size),
                    cache: Default::default(),
                    journal: None,
                    debug: DebugLayers::default(),
                }
            })
            .into_iter()
            .collect();
        let kvm = kvm::open().unwrap();
        let spec = MachineSpec {
            memory: setup.memory,
            pages: setup.pages,
            cpuid: (0..setup.cpus)
                .map(|i| cpuid::leaves(&cpuid::build(&kvm, setup.cpus, i).unwrap()))
                .collect(),
            cpu: CpuDemands::default(),
            backend: KvmBackend::detect(),
            disks: disks
                .iter()
                .map(|disk| DiskSpec {
                    format: ImageFormat::Raw,
                    id: disk.id.clone(),
                    path: disk.path.to_string_lossy().into_owned(),
                    access: disk.access,
                    size: setup.disk.unwrap(),
                })
                .collect(),
            nets: Vec::new(),
        };
        let (events, ends) = GuestEvents::new();
        let file = match setup.pages {
            PageBacking::Small => RamFile::memfd(),
            PageBacking::Thp => RamFile::on_own_tmpfs().unwrap(),
        };
        let machine =
            Machine::build(file, spec, &disks, DiskClaim::Owner, &console, &events).unwrap();
        let plan = BootPlan {
            kernel: &KernelSource::Embedded(PROBE_GUEST),
            initrd: None,
            cmdline: setup.cmdline,
            cpus: setup.cpus,
            ram: machine.ram(),
            mmio_slots: &mmio_slots(disks.len(), 0),
            generation_id: [7; 16],
        };
        machine
            .set_boot_registers(&boot::load(&plan).unwrap())
            .unwrap();
        machine.resume(PauseReason::NotStarted).unwrap();
        Self {
            files,
            console,
            disks,
            machine: Some(machine),
            ends,
        }
    }

    pub(crate) fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.disks[0].path.clone()
    }

    fn output(&self) -> String {
        let log = std::fs::read(self.files.path().join("log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits for the first line that `wanted` accepts, and returns its number.
    pub(crate) fn wait(&self, wanted: impl Fn(&ProbeLine) -> bool) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.output();
            let lines: Vec<_> = probe_lines(&output).collect();
            if let Some(fault) = lines.iter().find(|l| matches!(l, ProbeLine::Fault(_))) {
                panic!("{fault:?} in\n{output}");
            }
            if let Some(at) = lines.iter().position(&wanted) {
                return at;
            }
            if let Ok(end) = self.ends.try_recv() {
                panic!("{end:?} after\n{output}");
            }
            assert!(Instant::now() < deadline, "not in time; so far\n{output}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it is up.
    pub(crate) fn ready(&self) {
        self.wait(|line| matches!(line, ProbeLine::Ready(_)));
    }

    /// Waits for a tick that is newer than all that was said so far, on either console.
    pub(crate) fn tick(&self) -> Tick {
        self.console.flush(PATIENCE);
        let newest = probe_lines(&self.output())
            .filter_map(|line| match line {
                ProbeLine::Tick(tick) => Some(tick.n),
                _ => None,
            })
            .max();
        let newer = |line: &ProbeLine| matches!(line, ProbeLine::Tick(t) if Some(t.n) > newest);
        let at = self.wait(newer);
        match probe_lines(&self.output()).nth(at) {
            Some(ProbeLine::Tick(tick)) => tick,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        self.machine().pause(PauseReason::Migration).unwrap();
        self.machine().save(RunStateV1::Running).unwrap()
    }

    /// Saves the machine, builds another around the same RAM, and lets the guest go on there.
    pub(crate) fn move_to_another_machine(&mut self) {
        let saved = self.save();
        let (ram, spec) = (self.machine().ram().clone(), self.machine().spec().clone());
        self.machine = None;
        let (events, ends) = GuestEvents::new();
        let machine = Machine::build_on(
            ram,
            spec,
            &self.disks,
            DiskClaim::Owner,
            &self.console,
            &events,
        )
        .unwrap();
        assert_eq!(machine.load(&saved).unwrap(), RunStateV1::Running);
        machine.resume(PauseReason::NotStarted).unwrap();
        self.machine = Some(machine);
        self.ends = ends;
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.machine = None;
        self.console.close();
    }
}

#[test]
fn a_probe_that_is_moved_fifty_times_finds_no_fault() {
    if !has_kvm() {
        return;
    }
    let mut probe = Probe::start(&Setup {
        cpus: 2,
        memory: 64 << 20,
        pages: PageBacking::Small,
        disk: Some(4 << 20),
        cmdline: "fill=random fill_size=4M dirty_set=2M dirty_rate=2000 ledger=4M tick_ms=20 \
                  block=verify,size=256K block_rate=200 rng=read console=virtio",
    });
    // The disk was looked at as a whole, and is in use.
    probe.wait(|line| matches!(line, ProbeLine::Tick(t) if t.blocks_verified > 0));
    let first = probe.tick();
    let mut last = first;
    for _ in 0..50 {
        probe.move_to_another_machine();
        let tick = probe.tick();
        assert!(tick.mono_ns >= last.mono_ns, "{tick:?} after {last:?}");
        assert_eq!(tick.faults, 0);
        last = tick;
    }
    // Not every moment of so short a stay has its write or its look at the disk.
    probe.wait(|line| {
        matches!(line, ProbeLine::Tick(t) if t.ledger_verified > last.ledger_verified
            && t.blocks_verified > last.blocks_verified && t.dirtied > last.dirtied)
    });
    assert!(last.mono_ns > first.mono_ns);
    assert!(last.ledger_verified > first.ledger_verified);
    assert!(last.blocks_verified > first.blocks_verified);
    assert!(last.blocks_written > first.blocks_written);
    assert!(last.dirtied > first.dirtied);
    assert!(probe.output().contains("PROBE rng bytes=32"));
    let disk = std::fs::read(probe.disk()).unwrap();
    assert!(disk.iter().any(|byte| *byte != 0));
}

#[test]
fn a_breakpoint_that_is_about_to_be_delivered_is_not_lost() {
    if !has_kvm() {
        return;
    }
    // Each of its stores begins with an `int3`, so that some stop falls between one and its handler.
    let mut probe = Probe::start(&Setup {
        cpus: 2,
        memory: 32 << 20,
        pages: PageBacking::Small,
        disk: None,
        cmdline: "dirty_from=cpl0 dirty_set=64K ledger=64K dirty_rate=1000000 tick_ms=20",
    });
    let before = probe.tick();
    for _ in 0..100 {
        probe.move_to_another_machine();
        probe.tick();
    }
    probe.wait(|line| {
        matches!(line, ProbeLine::Tick(t) if t.ledger_verified > before.ledger_verified + 64)
    });
}

#[test]
fn sixteen_vcpus_start_tick_save_and_load() {
    if !has_kvm() {
        return;
    }
    let mut probe = Probe::start(&Setup {
        cpus: 16,
        memory: 128 << 20,
        pages: PageBacking::Small,
        disk: Some(1 << 20),
        cmdline: "dirty_set=4M dirty_rate=500 idle=halt tick_ms=50 block=verify,size=1M",
    });
    probe.wait(|line| matches!(line, ProbeLine::Ready(r) if r.cpus == 16));
    let before = probe.tick();
    for _ in 0..3 {
        probe.move_to_another_machine();
        probe.tick();
    }
    probe.wait(|line| {
        matches!(line, ProbeLine::Tick(t) if t.n > before.n
            && t.ledger_verified > before.ledger_verified && t.dirtied > before.dirtied)
    });
}

#[test]
fn ram_above_four_gib_is_used_logged_saved_and_loaded() {
    const MEMORY: u64 = 7 << 30;
    if !has_kvm() {
        return;
    }
    if crate::memory::check_size(MEMORY).is_err() {
        println!("skipped: this host has less than 7 GiB of memory");
        return;
    }
    // The larger part, where the probe puts its tables, is the upper one.
    let mut probe = Probe::start(&Setup {
        cpus: 2,
        memory: MEMORY,
        pages: PageBacking::Small,
        disk: None,
        cmdline: "fill=random fill_size=16M dirty_set=8M dirty_rate=4000 tick_ms=20",
    });
    probe.ready();
    let regions: Vec<(u64, u64)> = probe
        .machine()
        .ram()
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .collect();
    assert_eq!(regions, [(0, 3 << 30), (4 << 30, 4 << 30)]);

    let machine = probe.machine();
    machine.set_dirty_log(DirtyLog::On).unwrap();
    let pages = |len: u64| len / migration::PAGE_SIZE;
    let empty: Vec<Vec<u64>> = regions
        .iter()
        .map(|(_, len)| vec![0; pages(*len).div_ceil(64) as usize])
        .collect();
    for (region, bits) in empty.iter().enumerate() {
        let all = vec![u64::MAX; bits.len()];
        machine.clear_vcpu_writes(region, 0, &all).unwrap();
    }
    let mut dirty = empty.clone();
    machine.read_vcpu_writes(&mut dirty).unwrap();
    probe.tick();
    let mut dirty = empty;
    machine.read_vcpu_writes(&mut dirty).unwrap();
    let upper: u32 = dirty[1].iter().map(|word| word.count_ones()).sum();
    assert!(upper > 0, "writes above 4 GiB are logged");
    assert!(upper < 16 << 10, "{upper} pages cannot all be dirty");
    machine.set_dirty_log(DirtyLog::Off).unwrap();

    let before = probe.tick();
    for _ in 0..3 {
        probe.move_to_another_machine();
        probe.tick();
    }
    probe.wait(|line| {
        matches!(line, ProbeLine::Tick(t) if t.n > before.n
            && t.ledger_verified > before.ledger_verified
            && t.fill_verified > before.fill_verified)
    });
}
