//! The `vmm` command.

use std::process::ExitCode;
use std::sync::Arc;

use control::instance::Instance;
use control::runtime_dir::VmDir;
use machine::config::{ReceiveConfig, RunConfig};
use machine::console::ConsoleHub;
use machine::memory::RamFile;
use migration::observation::Observation;
use vmm::cli::Launcher;

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
        machine::probe::PROBE_GUEST
    }
}

fn main() -> ExitCode {
    vmm::cli::main(&Machines)
}
