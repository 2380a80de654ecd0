//! The whole program but for the machine itself: from the command line to the command, and from how
//! that ended to the exit code.

use std::process::ExitCode;

use clap::Parser;
use control::exit::{Exit, exit_of};
use control::runtime_dir::RuntimeDir;
use control::signals;
use migration::observation::Observation;

use super::args::{Cli, Command};
use super::launcher::Launcher;
use super::{bench, console, disk, generate, jobs, list, logs, migrate, receive, run, vm, wait};
use crate::{demo, logging};
use control::output::{self, Output};

/// Runs the command line of this process.
pub fn main(launcher: &dyn Launcher) -> ExitCode {
    signals::unblock_all();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return said_instead(&said),
    };
    let output = Output::new(cli.json);
    let exit = dispatch(cli, output, launcher).unwrap_or_else(|observation| {
        output.error(&observation);
        exit_of(&observation)
    });
    heard(exit, output).into()
}

/// Says what clap has to say: help, the version, or what is wrong with the command line.
fn said_instead(said: &clap::Error) -> ExitCode {
    if let Err(error) = said.print() {
        output::lose(error);
    }
    match said.exit_code() {
        0 => heard(Exit::Done, Output::Text).into(),
        _ => Exit::Usage.into(),
    }
}

/// How to end: what was asked for may have been done, and whoever asked not have heard all of it.
fn heard(exit: Exit, output: Output) -> Exit {
    match output::lost() {
        Some(lost) if exit == Exit::Done => {
            output.error(&lost);
            exit_of(&lost)
        }
        _ => exit,
    }
}

fn dispatch(cli: Cli, output: Output, launcher: &dyn Launcher) -> Result<Exit, Observation> {
    let log = cli.log_options();
    match cli.command {
        Command::Completions { shell } => return generate::completions(shell),
        Command::Man { dir } => return generate::man_pages(&dir),
        Command::Disk(args) => {
            let _ = logging::init(log, None);
            return disk::run(&args, output);
        }
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
        Command::Jobs(args) => jobs::run(&args, &runtime, output),
        Command::List { all } => {
            let which = if all {
                list::Which::All
            } else {
                list::Which::Live
            };
            list::run(which, &runtime, output)
        }
        Command::Status { name } => vm::status(&name, &runtime, output),
        Command::Console { name } => console::run(&name, &runtime),
        Command::Pause { name } => vm::pause(&name, &runtime, output),
        Command::Resume { name } => vm::resume(&name, &runtime, output),
        Command::Stop { name, force } => vm::stop(&name, force, &runtime, output),
        Command::Wait {
            name,
            state,
            timeout,
        } => wait::run(&name, state, timeout, &runtime, output),
        Command::Logs(args) => {
            let until = if args.follow {
                logs::Until::End
            } else {
                logs::Until::Now
            };
            logs::run(&args.name, args.log(), until, &runtime, output)
        }
        Command::Forget { name } => vm::forget(&name, &runtime, output),
        Command::Demo(args) => demo::run(&args, output, launcher),
        Command::Bench { args } => match bench::run(args, output)? {},
        Command::Disk(_) | Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Done),
    }
}
