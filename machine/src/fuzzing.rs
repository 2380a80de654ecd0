//! What the fuzz targets need beyond the public interface: decoders that are private because nobody
//! else calls them, each behind a function that does nothing more.

use std::path::Path;

use crate::boot::refusal::KvmBackend;
use crate::build::spec::{CpuDemands, MachineSpec};
use crate::config::RunOptions;
use crate::console::{ConsoleHub, ConsoleOutputs};
use crate::cpuid::{CpuidLeaf, HostCpu, Model};
use crate::disks::{self, DiskClaim};
use crate::error::MachineError;
use crate::events::GuestEvents;
use crate::machine::Machine;
use crate::memory::{PageBacking, RamFile};
use crate::{kvm, memory};

/// Reads a configuration file's text, whose relative paths are relative to `/srv`.
///
/// # Errors
/// A sentence for the user.
pub fn options_from_toml(text: &str) -> Result<RunOptions, String> {
    RunOptions::from_toml(text, Path::new("/srv"))
}

/// Reads the text of a CPU model's file.
///
/// # Errors
/// A sentence for the user.
pub fn cpu_model(text: &str) -> Result<Model, String> {
    Model::from_toml(text, "pool")
}

/// What a host with `leaves` offers when `model` is the most that it is to offer, and what a guest of
/// `model` with RAM up to `ram_end` is given there, if the host has it all.
pub fn cpuid_of(
    model: &Model,
    leaves: &[CpuidLeaf],
    ram_end: u64,
) -> (Vec<CpuidLeaf>, Option<Vec<CpuidLeaf>>) {
    let guest = model.leaves(leaves, "the host", ram_end);
    (model.limit(leaves), guest.ok())
}

/// Reads what a peer tells of where disks lie, and of what they hold.
pub fn told_of_disks(text: &str) {
    disks::told_of_disks(text);
}

/// A machine of one vCPU and 16 MiB without disks, which never ran: one that a saved state is loaded
/// into.
///
/// # Errors
/// When this host cannot build it.
pub fn machine() -> Result<Machine, MachineError> {
    let opened = kvm::open()?;
    let size = 16 << 20;
    let cpuid = HostCpu::probe(&opened, None)?.guest(&Model::host(), 1, memory::end(size))?;
    let spec = MachineSpec {
        memory: size,
        pages: PageBacking::Small,
        cpuid,
        cpu: CpuDemands::default(),
        backend: KvmBackend::detect(),
        disks: Vec::new(),
        nets: Vec::new(),
    };
    let console = ConsoleHub::start(ConsoleOutputs::default())
        .map_err(|e| MachineError::Build("start the console", e))?;
    let (events, _ends) = GuestEvents::new();
    Machine::build(
        RamFile::memfd(),
        spec,
        &[],
        DiskClaim::Owner,
        &console,
        &events,
    )
}
