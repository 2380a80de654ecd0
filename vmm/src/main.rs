//! The `vmm` command.

use std::process::ExitCode;
use std::sync::Arc;

use migration::observation::{Observation, Side};
use vmm::cli::Launcher;
use vmm::config::{ReceiveConfig, RunConfig};
use vmm::console::ConsoleHub;
use vmm::instance::Instance;
use vmm::runtime_dir::VmDir;

/// A build without a machine: says so.
struct NoMachine;

fn no_machine() -> Observation {
    Observation::new(Side::Client, "host.no-machine", "this build has no machine")
}

impl Launcher for NoMachine {
    fn run(
        &self,
        _: &RunConfig,
        _: &VmDir,
        _: &ConsoleHub,
    ) -> Result<Arc<dyn Instance>, Observation> {
        Err(no_machine())
    }

    fn receive(
        &self,
        _: &ReceiveConfig,
        _: &VmDir,
        _: &ConsoleHub,
    ) -> Result<Arc<dyn Instance>, Observation> {
        Err(no_machine())
    }

    fn probe_guest(&self) -> &[u8] {
        &[]
    }
}

fn main() -> ExitCode {
    vmm::cli::main(&NoMachine)
}
