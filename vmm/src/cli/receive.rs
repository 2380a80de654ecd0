//! `vmm receive`.

use control::exit::{Exit, exit_of};
use control::runtime_dir::{RuntimeDir, VmDir};
use machine::NAMELESS;
use machine::config::ReceiveConfig;
use migration::address::Address;
use migration::observation::Observation;

use super::args::ReceiveArgs;
use super::launcher::Launcher;
use super::vm_process::{Attachment, Confined, run_vm};
use super::{detach, names};
use crate::logging::LogOptions;
use control::output::Output;

pub(super) fn run(
    args: ReceiveArgs,
    detached_child: bool,
    log: LogOptions,
    runtime: &RuntimeDir,
    output: Output,
    launcher: &dyn Launcher,
) -> Result<Exit, Observation> {
    if args.detach && !detached_child {
        let status = detach::start_detached()?;
        let listen = status.listen.clone().unwrap_or_default();
        output.either(&status, format!("{} listens at {listen}", status.name));
        return Ok(Exit::Done);
    }
    let attachment = if detached_child {
        Attachment::Detached
    } else {
        Attachment::Foreground
    };
    attachment.outlive_signals()?;
    let sandbox = args.confinement.sandbox;
    let (dir, config) = match prepare(args, runtime) {
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
    let confinement = Confined {
        socket: match config.listen.address() {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } | Address::Fd(_) => None,
        },
        ..Confined::new(sandbox)
    };
    run_vm(
        dir,
        attachment,
        confinement,
        log,
        output,
        |dir, console, file| launcher.receive(&config, dir, console, file),
    )
}

fn prepare(args: ReceiveArgs, runtime: &RuntimeDir) -> Result<(VmDir, ReceiveConfig), Observation> {
    let config = ReceiveConfig {
        listen: names::to_listen_at(&args.listen)?,
        name: args.name,
        disks: args.disks,
        disk_dir: args.disk_dir,
        allow_backing: args.allow_backing,
        nets: args.nets,
        reserve: args.reserve.map(|size| size.0),
        max_inbound: args.max_inbound,
    };
    let config = config.checked()?;
    let dir = runtime.create(config.name.as_deref(), NAMELESS)?;
    Ok((dir, config))
}
