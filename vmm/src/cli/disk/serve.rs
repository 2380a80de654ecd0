//! `vmm disk serve`.

use std::path::Path;
use std::sync::Arc;

use block::image::qcow2::BackingRules;
use control::exit::{Exit, local};
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use machine::serving::{self, Listed, Records, ServeError, ToServe};
use migration::address::Address;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::pull::Served;
use migration::transport::Listen;
use migration::transport::socket::SocketListen;

use super::super::names;
use super::args::ServeArgs;
use super::serve_later::{self, How};
use super::served_told::{Told, wrong};
use super::wrong::usage;
use crate::sandbox::{self, Sandbox};

pub(super) fn run(
    args: &ServeArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let records = Records::at(runtime.serving()?);
    if args.list {
        for Listed { record, pid } in records.list().map_err(|e| wrong(&e))? {
            let told = Told::new(&record, &records, pid);
            output.either(&told, told.line());
        }
        return Ok(Exit::Done);
    }
    let path = args.path.as_deref().ok_or_else(|| usage("name an image"))?;
    let image = path.canonicalize().map_err(|e| {
        let what = format!("cannot find {}: {e}", path.display());
        local("disk.open", what)
    })?;
    match &args.listen {
        Some(listen) if !args.forget => {
            let folder = runtime.migrations().ok_or_else(|| {
                local("host.state-dir", "there is no folder for records of moves")
            })?;
            let journal = FileJournal::open(folder)
                .map_err(|e| Observation::from_error(Side::Client, "migration.journal", &e))?;
            serve(args, (&image, listen), &records, &journal, output)
        }
        _ => forget(&image, &records, output),
    }
}

fn forget(image: &Path, records: &Records, output: Output) -> Result<Exit, Observation> {
    let found = records.find(image).map_err(|e| wrong(&e))?;
    let path = image.to_owned();
    let record = found.ok_or(ServeError::NoRecord { path });
    let record = record.map_err(|e| wrong(&e))?;
    let held = records.hold(&record).map_err(|e| wrong(&e))?;
    held.remove().map_err(|e| wrong(&e))?;
    output.line(format!("{} is not served any more", image.display()));
    Ok(Exit::Done)
}

fn serve(
    args: &ServeArgs,
    (image, listen): (&Path, &str),
    records: &Records,
    journal: &FileJournal,
    output: Output,
) -> Result<Exit, Observation> {
    let at = names::to_listen_at(listen)?;
    let socket = match at.address() {
        Address::Unix(path) => Some(path.clone()),
        Address::Tcp { port: 0, .. } if !args.when_guest_has_gone => {
            return Err(usage(
                "a port that is found anew each time is of no use to a client: give one",
            ));
        }
        Address::Tcp { .. } => None,
        Address::Fd(_) => {
            return Err(usage(
                "an inherited socket is gone after a crash: give an address",
            ));
        }
    };
    let rules = BackingRules {
        permitted: args.allow_backing.clone(),
    };
    let what = ToServe {
        image,
        format: args.format,
        rules: &rules,
        disk: &args.id,
        listen,
        client: args.client.as_deref(),
    };
    let bind = || {
        SocketListen::bind(&at).map_err(|e| {
            let why = Observation::from_error(Side::Client, "receive.listen", &e);
            local("receive.listen", format!("cannot listen at {listen}")).caused_by(why)
        })
    };
    if args.when_guest_has_gone {
        let how = How {
            listener: bind()?,
            socket: socket.as_deref(),
            sandbox: args.sandbox,
            rate: args.bandwidth.0,
        };
        return serve_later::run(what, &how, records, journal, output);
    }
    let served = Arc::new(serving::open(records, &what, journal).map_err(|e| wrong(&e))?);
    let record = served.record();
    let pid = Some(std::process::id());
    let mut told = Told::new(&record, records, pid);
    if told.released {
        output.either(&told, told.line());
        return Ok(Exit::Done);
    }
    let listener = bind()?;
    let address = listener.address();
    if args.sandbox == Sandbox::Off {
        eprintln!("vmm: warning: the process is not confined (--sandbox off)");
    }
    let missing = sandbox::enter_serving(args.sandbox, records.folder(), socket.as_deref())?;
    if !missing.is_empty() {
        let missing = missing.join("; ");
        eprintln!("vmm: warning: this kernel cannot limit: {missing} [sandbox.partial]");
    }
    told.event = Some("serving");
    told.listen = &address;
    output.either(
        &told,
        format!(
            "{}\nthe secret is in {}",
            told.line(),
            told.record.display()
        ),
    );
    let ended = serving::serve(&served, &listener, args.bandwidth.0).map_err(|e| wrong(&e))?;
    let record = served.record();
    let mut told = Told::new(&record, records, pid);
    told.event = Some(match ended {
        Served::Released => "released",
        Served::Stopped => "stopped",
    });
    output.either(&told, told.line());
    Ok(Exit::Done)
}
