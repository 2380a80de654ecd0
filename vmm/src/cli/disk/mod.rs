//! `vmm disk`: images without a VM, and disks of one that runs.

mod args;
mod check;
mod create;
mod info;
mod jobs;
mod made;
mod moving;
mod options;
mod pulling;
mod resize;
mod serve;
pub(super) mod serve_later;
mod served_told;
mod wrong;

use control::exit::Exit;
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use migration::observation::Observation;

pub use args::DiskArgs;
use args::DiskCommand;

pub(super) fn run(args: &DiskArgs, output: Output) -> Result<Exit, Observation> {
    match &args.command {
        DiskCommand::Info(args) => info::run(args, output),
        DiskCommand::Check(args) => check::run(args, output),
        DiskCommand::Create(args) => create::run(args, output),
        DiskCommand::Resize(args) => resize::run(args, output),
        DiskCommand::Move(args) => moving::run(args, &RuntimeDir::of_environment()?, output),
        DiskCommand::Serve(args) => serve::run(args, &RuntimeDir::of_environment()?, output),
        DiskCommand::Pull(args) => pulling::run(args, &RuntimeDir::of_environment()?, output),
        DiskCommand::Jobs(args) => jobs::run(args, &RuntimeDir::of_environment()?, output),
    }
}
