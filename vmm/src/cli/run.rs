//! `vmm run`.

use std::path::Path;

use control::exit::{Exit, exit_of};
use control::runtime_dir::{RuntimeDir, VmDir};
use machine::config::{RunConfig, RunOptions, StaleDisks};
use machine::{remove_left_overlays, settle};
use migration::observation::Observation;

use super::args::RunArgs;
use super::launcher::Launcher;
use super::vm_process::{Attachment, Confined, run_vm};
use super::{detach, wait};
use crate::logging::LogOptions;
use control::output::Output;

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
        if status.state.is_final() {
            // A guest may be over before it is told of.
            return wait::run(&status.name, None, None, runtime, output);
        }
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
    attachment.outlive_signals()?;
    let confinement = Confined::new(args.confinement.sandbox);
    let prepared = prepare(args, runtime);
    let (dir, config) = match prepared {
        Ok(prepared) => prepared,
        Err(why) if detached_child => {
            detach::announce_failed(&why);
            return Ok(exit_of(&why));
        }
        Err(why) => return Err(why),
    };
    if detached_child {
        detach::leave_session();
    }
    run_vm(
        dir,
        attachment,
        confinement,
        log,
        output,
        |dir, console, file| launcher.run(&config, dir, console, file),
    )
}

fn prepare(args: RunArgs, runtime: &RuntimeDir) -> Result<(VmDir, RunConfig), Observation> {
    let file = match &args.config {
        Some(path) => RunOptions::from_file(path)?,
        None => RunOptions::default(),
    };
    let options = args.into_options().or(file);
    let dir = runtime.create(options.name.as_deref(), "vm")?;
    let config = options.into_config(dir.name())?;
    bring_together(&config, &dir.migrations())?;
    Ok((dir, config))
}

/// Ends moves of the guest's disks that were cut short while these were in overlays.
fn bring_together(config: &RunConfig, journal: &Path) -> Result<(), Observation> {
    if config.stale_disks == StaleDisks::Used {
        // As they are.
        return Ok(());
    }
    for disk in config.disks.iter().filter(|disk| !disk.readonly) {
        if let Some(at) = settle(&disk.path, journal, &config.allow_backing)? {
            eprintln!(
                "vmm: a move of disk {} was cut short; what was in its overlays is at {}",
                disk.id,
                at.display()
            );
        }
        remove_left_overlays(&disk.path, journal);
    }
    Ok(())
}
