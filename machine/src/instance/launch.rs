//! From a configuration to a VM: a guest that boots here, or one that comes in.

use block::image::Format;
use block::image::qcow2::BackingRules;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::Content;
use control::instance::{Instance, VmState};
use control::runtime_dir::VmDir;
use devices::virtio::net::Mac;
use migration::observation::{Observation, Side};

use crate::boot::refusal::{self, KvmBackend};
use crate::boot::{self, BootPlan, KernelSource};
use crate::build;
use crate::build::demands;
use crate::build::spec::CpuDemands;
use crate::build::spec::{DiskAccess, DiskSpec, MachineSpec};
use crate::config::{DiskConfig, DiskFormat, ReceiveConfig, RunConfig, StaleDisks, host_limit};
use crate::console::ConsoleHub;
use crate::cpuid::{HostCpu, Model};
use crate::debug::DebugLayers;
use crate::devices::net::NetSpec;
use crate::disks::{self, DiskClaim, DiskOwner, DiskSource};
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::instance::hang;
use crate::instance::incoming;
use crate::instance::requests::Served;
use crate::instance::vm::VmInstance;
use crate::machine::Machine;
use crate::memory::RamFile;
use crate::opener;
use crate::power::PauseReason;
use crate::probe::PROBE_GUEST;
use crate::{kvm, memory};

/// Boots a guest as configured, its RAM in `file`; it runs when this returns.
///
/// # Errors
/// One observation with the chain down to the cause; nothing is left behind.
pub fn run(
    config: &RunConfig,
    dir: &VmDir,
    console: &ConsoleHub,
    file: RamFile,
) -> Result<Arc<dyn Instance>, Observation> {
    let (events, ends) = GuestEvents::new();
    let debug = opener::outside(|| DebugLayers::asked_for(Side::Source))?;
    let limit = cpu_limit(dir)?;
    let wanted = config.cpu.clone();
    let model = opener::outside(move || wanted.resolve())?;
    let disks = config.disks.iter().map(|disk| DiskSource {
        journal: (config.stale_disks == StaleDisks::Refused).then(|| dir.migrations()),
        debug: debug.clone(),
        ..disk_source(disk, &config.allow_backing)
    });
    let machine = build_and_boot(
        file,
        config,
        disks.collect(),
        &model,
        limit.as_ref(),
        console,
        &events,
    )
    .map_err(|e| e.observed(Side::Source))?;
    let machine = Arc::new(machine);
    let instance = VmInstance::new(dir, VmState::Running);
    instance
        .follow(ends)
        .map_err(|e| Observation::from_error(Side::Source, "machine.thread", &e))?;
    machine.devices().disks.have_rest_come(None);
    machine
        .resume(PauseReason::NotStarted)
        .map_err(|e| e.observed(Side::Source))?;
    instance.owns(&machine);
    instance.bring_what_disks_lack(&machine)?;
    if config.kernel.is_some() && machine.spec().backend.is_pvm() {
        hang::watch(&machine)
            .map_err(|e| Observation::from_error(Side::Source, "machine.thread", &e))?;
    }
    Ok(Arc::new(Served(instance)))
}

/// Listens for one guest, whose RAM will lie in `file`; the VM is `incoming` until it has arrived.
///
/// # Errors
/// When the address cannot be listened at, or the host lacks what any guest needs.
pub fn receive(
    config: &ReceiveConfig,
    dir: &VmDir,
    console: &ConsoleHub,
    file: RamFile,
) -> Result<Arc<dyn Instance>, Observation> {
    kvm::open()
        .map_err(MachineError::from)
        .and_then(|kvm| demands::ask_beforehand(&kvm))
        .map_err(|e| e.observed(Side::Destination))?;
    let cpu_limit = cpu_limit(dir)?;
    let (events, ends) = GuestEvents::new();
    let instance = VmInstance::new(dir, VmState::Incoming);
    instance
        .follow(ends)
        .map_err(|e| Observation::from_error(Side::Destination, "machine.thread", &e))?;
    incoming::listen(config, dir, cpu_limit, console, &instance, events, file)?;
    Ok(Arc::new(Served(instance)))
}

/// The most of its CPU that this host offers.
fn cpu_limit(dir: &VmDir) -> Result<Option<Model>, Observation> {
    let path = dir.host_cpu();
    opener::outside(move || host_limit(&path))
}

fn build_and_boot(
    file: RamFile,
    config: &RunConfig,
    disks: Vec<DiskSource>,
    model: &Model,
    limit: Option<&Model>,
    console: &ConsoleHub,
    events: &GuestEvents,
) -> Result<Machine, MachineError> {
    let kvm = kvm::open()?;
    let mut specs = Vec::with_capacity(disks.len());
    for source in &disks {
        let size = disks::check(source, DiskClaim::Owner)?;
        specs.push(DiskSpec {
            id: source.id.clone(),
            path: absolute(&source.path),
            access: source.access,
            size,
            format: source.format.into(),
        });
    }
    let mut nets = Vec::with_capacity(config.nets.len());
    for net in &config.nets {
        let mac = match net.mac {
            Some(mac) => mac,
            None => Mac::random().map_err(|e| MachineError::Build("draw a MAC address", e))?,
        };
        nets.push(NetSpec::of_tap(&net.id, &net.tap, mac, net.queues)?);
    }
    let cpuid = HostCpu::probe(&kvm, limit)?.guest(
        model,
        config.cpus.into(),
        memory::end(config.memory),
    )?;
    let spec = MachineSpec {
        memory: config.memory,
        pages: config.pages,
        cpuid,
        cpu: CpuDemands {
            model: model.name().to_owned(),
            ..CpuDemands::default()
        },
        backend: KvmBackend::detect(),
        disks: specs,
        nets,
    };
    drop(kvm);
    let machine = Machine::build(file, spec, &disks, DiskClaim::Owner, console, events)?;
    let kernel = match &config.kernel {
        Some(path) => KernelSource::File(path.clone()),
        None => KernelSource::Embedded(PROBE_GUEST),
    };
    let plan = BootPlan {
        kernel: &kernel,
        initrd: config.initrd.as_deref(),
        cmdline: &config.cmdline,
        cpus: config.cpus.into(),
        ram: machine.ram(),
        mmio_slots: &build::mmio_slots(disks.len(), config.nets.len()),
        generation_id: generation_id()?,
    };
    let entry = boot::load(&plan)?;
    // Everything that the guest was given is open, and the kernel is read.
    opener::close();
    if let Some(why) = refusal::refuse_before_start(&entry, machine.spec().backend) {
        return Err(MachineError::Unfit(why));
    }
    machine.set_boot_registers(&entry)?;
    Ok(machine)
}

fn disk_source(disk: &DiskConfig, allow_backing: &[PathBuf]) -> DiskSource {
    DiskSource {
        owner: DiskOwner::AsTheMachine,
        id: disk.id.clone(),
        path: disk.path.clone(),
        access: if disk.readonly {
            DiskAccess::ReadOnly
        } else {
            DiskAccess::ReadWrite
        },
        format: match disk.format {
            DiskFormat::Guessed | DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        },
        content: match disk.format {
            DiskFormat::Guessed => Content::Guess,
            DiskFormat::Raw | DiskFormat::Qcow2 => Content::Raw,
        },
        backing: BackingRules {
            permitted: allow_backing.to_vec(),
        },
        expected_size: None,
        cache: disk.cache,
        journal: None,
        debug: DebugLayers::default(),
    }
}

/// The path as a destination on the same storage finds it.
fn absolute(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .to_string_lossy()
        .into_owned()
}

/// Identity of this run of the guest, for its VM generation id device.
fn generation_id() -> Result<[u8; 16], MachineError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| MachineError::Build("draw a generation id", e.into()))?;
    Ok(id)
}
