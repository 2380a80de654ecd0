//! The command line.
//!
//! [`main`] is the whole program but for the machine itself, which it reaches through a
//! [`Launcher`].

mod args;
mod bench;
mod console;
mod detach;
mod exit;
mod generate;
mod hold;
mod migrate;
mod output;
mod progress;
mod receive;
mod report;
mod run;
mod terminal;
mod vm;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use migration::observation::Observation;

use crate::config::{ReceiveConfig, RunConfig};
use crate::console::ConsoleHub;
use crate::instance::Instance;
use crate::logging;
use crate::memory::RamFile;
use crate::runtime_dir::{RuntimeDir, VmDir};

pub(crate) use args::DemoArgs;
pub use args::{Cli, Command};
pub use exit::{Exit, exit_of};
pub(crate) use exit::{exit_of_report, local};
pub(crate) use output::{Output, explain};
pub(crate) use progress::{Interrupts, Progress, await_interrupt};
pub(crate) use report::downtime_parts;
pub(crate) use terminal::{Keys, hand_on};

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

/// Runs the command line of this process.
pub fn main(launcher: &dyn Launcher) -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match dispatch(cli, output, launcher) {
        Ok(exit) => exit.into(),
        Err(observation) => {
            output.error(&observation);
            exit_of(&observation).into()
        }
    }
}

fn dispatch(cli: Cli, output: Output, launcher: &dyn Launcher) -> Result<Exit, Observation> {
    let log = cli.log_options();
    match cli.command {
        Command::Completions { shell } => return generate::completions(shell),
        Command::Man { dir } => return generate::man_pages(&dir),
        _ => {}
    }
    let runtime = RuntimeDir::of_environment()?;
    // Processes that hold a VM begin their logs when its folder is there.
    if !matches!(cli.command, Command::Run(_) | Command::Receive(_)) {
        let _ = logging::init(log, None);
    }
    match cli.command {
        Command::Run(args) => run::run(*args, cli.detached_child, log, &runtime, output, launcher),
        Command::Receive(args) => {
            receive::run(args, cli.detached_child, log, &runtime, output, launcher)
        }
        Command::Migrate(args) => migrate::run(&args, &runtime, output),
        Command::List => vm::list(&runtime, output),
        Command::Status { name } => vm::status(&name, &runtime, output),
        Command::Console { name } => console::run(&name, &runtime),
        Command::Pause { name } => vm::pause(&name, &runtime, output),
        Command::Resume { name } => vm::resume(&name, &runtime, output),
        Command::Stop { name, force } => vm::stop(&name, force, &runtime, output),
        Command::Wait {
            name,
            state,
            timeout,
        } => vm::wait(&name, state, timeout, &runtime, output),
        Command::Demo(args) => crate::demo::run(&args, output, launcher),
        Command::Bench(args) => bench::run(args, output),
        Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Done),
    }
}

/// Runs `future` to its end on this thread.
pub(crate) fn block_on<T>(
    future: impl Future<Output = Result<T, Observation>>,
) -> Result<T, Observation> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| local("host.resources", format!("start the event loop: {e}")))?
        .block_on(future)
}
