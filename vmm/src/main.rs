//! The `vmm` command.

use std::process::ExitCode;
use std::sync::Arc;

use migration::observation::Observation;
use vmm::cli::Launcher;
use vmm::config::{ReceiveConfig, RunConfig};
use vmm::console::ConsoleHub;
use vmm::instance::Instance;
use vmm::machine;
use vmm::memory::RamFile;
use vmm::runtime_dir::VmDir;

/// Starts VMs on this host's KVM.
struct Machines;

impl Launcher for Machines {
    fn run(
        &self,
        config: &RunConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        file: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation> {
        machine::run(config, dir, console, file)
    }

    fn receive(
        &self,
        config: &ReceiveConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        file: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation> {
        machine::receive(config, dir, console, file)
    }

    fn probe_guest(&self) -> &[u8] {
        vmm::probe::PROBE_GUEST
    }
}

fn main() -> ExitCode {
    vmm::cli::main(&Machines)
}
