//! `vmm run`.

use migration::observation::Observation;

use super::args::RunArgs;
use super::exit::Exit;
use super::hold::{Attachment, Confined, hold};
use super::{Launcher, Output, detach};
use crate::config::RunOptions;
use crate::logging::LogOptions;
use crate::runtime_dir::RuntimeDir;

pub(super) fn run(
    args: RunArgs,
    detached_child: bool,
    log: LogOptions,
    runtime: &RuntimeDir,
    output: Output,
    launcher: &dyn Launcher,
) -> Result<Exit, Observation> {
    if args.detach && !detached_child {
        let status = detach::start_detached()?;
        output.either(
            &status,
            format!("{} runs (process {})", status.name, status.pid),
        );
        return Ok(Exit::Done);
    }
    let attachment = if detached_child {
        Attachment::Detached
    } else {
        Attachment::Foreground
    };
    let confinement = Confined::new(args.confinement.sandbox);
    let prepared = prepare(args, runtime);
    let (dir, config) = match prepared {
        Ok(prepared) => prepared,
        Err(why) if detached_child => {
            detach::announce_failed(&why);
            return Ok(super::exit_of(&why));
        }
        Err(why) => return Err(why),
    };
    if detached_child {
        detach::leave_session();
    }
    hold(
        dir,
        attachment,
        confinement,
        log,
        output,
        |dir, console, file| launcher.run(&config, dir, console, file),
    )
}

fn prepare(
    args: RunArgs,
    runtime: &RuntimeDir,
) -> Result<(crate::runtime_dir::VmDir, crate::config::RunConfig), Observation> {
    let file = match &args.config {
        Some(path) => RunOptions::from_file(path)?,
        None => RunOptions::default(),
    };
    let options = args.into_options().or(file);
    let dir = runtime.create(options.name.as_deref(), "vm")?;
    let config = options.into_config(dir.name())?;
    Ok((dir, config))
}
