//! What the command line needs of the machine: the program that has one implements it.

use std::sync::Arc;

use control::instance::Instance;
use control::runtime_dir::VmDir;
use machine::config::{ReceiveConfig, RunConfig};
use machine::console::ConsoleHub;
use machine::memory::RamFile;
use migration::observation::Observation;

/// Builds machines for the command line.
pub trait Launcher: Sync {
    /// Builds a guest as configured, its RAM in `file`; it runs when this returns.
    ///
    /// # Errors
    /// What explains why it does not; nothing is left behind.
    fn run(
        &self,
        config: &RunConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        file: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation>;

    /// Listens for one guest, whose RAM will lie in `file`; the port is bound when this returns.
    ///
    /// # Errors
    /// What explains why it does not; nothing is left behind.
    fn receive(
        &self,
        config: &ReceiveConfig,
        dir: &VmDir,
        console: &ConsoleHub,
        file: RamFile,
    ) -> Result<Arc<dyn Instance>, Observation>;

    /// Image of the probe guest that runs where no kernel is named.
    fn probe_guest(&self) -> &[u8];
}
