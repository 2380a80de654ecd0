//! `vmm receive`.

use migration::address::Address;
use migration::observation::Observation;

use super::args::ReceiveArgs;
use super::exit::Exit;
use super::hold::{Attachment, Confined, hold};
use super::{Launcher, Output, detach};
use crate::config::ReceiveConfig;
use crate::logging::LogOptions;
use crate::runtime_dir::{RuntimeDir, VmDir};

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
    let sandbox = args.confinement.sandbox;
    let (dir, config) = match prepare(args, runtime) {
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
    let confinement = Confined {
        socket: match config.listen.parse() {
            Ok(Address::Unix(path)) => Some(path),
            _ => None,
        },
        ..Confined::new(sandbox)
    };
    hold(
        dir,
        attachment,
        confinement,
        log,
        output,
        |dir, console, file| launcher.receive(&config, dir, console, file),
    )
}

fn prepare(args: ReceiveArgs, runtime: &RuntimeDir) -> Result<(VmDir, ReceiveConfig), Observation> {
    let config = {
        let reserve = args.reserve.map(|size| size.0);
        ReceiveConfig::new(args.listen, args.name, args.disks, args.nets, reserve)?
    };
    let dir = runtime.create(config.name.as_deref(), "incoming")?;
    Ok((dir, config))
}
