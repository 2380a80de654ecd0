//! `vmm disk pull`.

use std::io;
use std::path::Path;

use control::api::client::Client;
use control::exit::{Exit, local};
use control::on_demand::{OnDemandChange, PullPriority};
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use control::units::human_bytes;
use machine::disk_in_part::{self, Completed};
use machine::serving::{self, Pulled, ToPull};
use migration::address::{Address, AddressError};
use migration::endpoint::Endpoint;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};
use migration::transport::Connect;
use migration::transport::socket::SocketConnect;
use serde_json::json;

use super::super::event_loop::block_on;
use super::super::{names, wording};
use super::args::PullArgs;
use super::wrong::usage;

pub(super) fn run(
    args: &PullArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    if let Some((name, id)) = of_a_guest(&args.what) {
        return while_it_runs(args, &Client::new(runtime, name), id, output);
    }
    if args.on_source_loss.is_some() || args.priority.is_some() {
        return Err(usage(
            "--on-source-loss and --priority are for the disk of a guest that runs, as NAME:ID",
        ));
    }
    let path = std::path::absolute(&args.what)
        .map_err(|e| local("usage.disk", format!("{}: {e}", args.what.display())))?;
    let migrations = runtime
        .migrations()
        .ok_or_else(|| local("host.state-dir", "there is no folder for records of moves"))?;
    let journal = FileJournal::open(migrations)
        .map_err(|e| Observation::from_error(Side::Client, "migration.journal", &e))?;
    let at = args.at.as_deref().map(names::from_anywhere);
    if let Some(record) = &args.from {
        begin(args, record, &path, at.as_deref(), &journal)?;
        if args.begin {
            output.object(&json!({ "path": path, "begun": true }));
            output.line(format!(
                "{} has nothing yet: start its guest with it, or run vmm disk pull again",
                path.display()
            ));
            return Ok(Exit::Done);
        }
    }
    match disk_in_part::served_by(&path)? {
        Some(_) => from_who_serves(args, &path, at.as_deref(), &journal, output),
        None if at.is_some() => Err(usage(
            "what it lacks is in an image of this host: --at is for what another serves",
        )),
        None => from_an_image(&path, &journal, output),
    }
}

/// The VM and the disk that are named, where it is no path.
fn of_a_guest(what: &Path) -> Option<(&str, &str)> {
    let text = what.to_str().filter(|text| !text.contains('/'))?;
    let named = text.split_once(':')?;
    (!what.exists()).then_some(named)
}

/// Changes how what is missing is had of a disk whose guest runs.
fn while_it_runs(
    args: &PullArgs,
    client: &Client,
    id: &str,
    output: Output,
) -> Result<Exit, Observation> {
    if args.from.is_some() || args.at.is_some() {
        return Err(usage("--from and --at are for an image that no guest uses"));
    }
    let begins = args.on_source_loss.is_none();
    let change = OnDemandChange {
        on_source_loss: args.on_source_loss,
        priority: args.priority.or(begins.then_some(PullPriority::Background)),
    };
    let status = block_on(client.change_on_demand(id, &change))?;
    let disk = status.disks.iter().find(|disk| disk.id == id);
    let disk = disk.ok_or_else(|| local("disk.unknown", format!("the guest has no disk {id}")))?;
    let missing = disk.missing.as_ref().map(wording::missing);
    let told = missing.map_or_else(|| "all of it is here".into(), |lines| lines.join("; "));
    output.either(disk, format!("disk {id}: {told}"));
    Ok(Exit::Done)
}

/// Makes the image, if it is not there from before.
fn begin(
    args: &PullArgs,
    record: &Path,
    path: &Path,
    at: Option<&str>,
    journal: &FileJournal,
) -> Result<(), Observation> {
    let record = serving::given(record).map_err(|e| e.observe())?;
    let as_there = record.format.parse().map_err(|e: String| usage(&e))?;
    let at = at.unwrap_or(&record.listen);
    // The process of a VM looks no name up.
    let known = names::of_destination(at)?.first().map(ToString::to_string);
    let what = ToPull {
        path,
        format: args.format.unwrap_or(as_there),
        served_at: known.as_deref().unwrap_or(at),
        record: &record,
    };
    serving::begin(&what, journal, &|to: &str| connector(to, args))
}

/// Connects to `to`, which `args` name, or a map that was made of such.
fn connector(to: &str, args: &PullArgs) -> Result<Box<dyn Connect>, Observation> {
    let sockets = names::of_destination(to)?;
    let address: Address = to
        .parse()
        .map_err(|e: AddressError| local("usage.address", e.to_string()))?;
    let failed = |e: io::Error| local("usage.address", format!("{to}: {e}"));
    let endpoint = Endpoint::resolved(address, sockets).map_err(failed)?;
    let is_named_now = args.from.is_some() || args.at.is_some();
    if is_named_now && !args.insecure && !endpoint.is_loopback() {
        return Err(local(
            "usage.insecure",
            "plain TCP beyond this host needs --insecure: the disk is readable on the wire",
        ));
    }
    let connect = SocketConnect::new(endpoint).map_err(failed)?;
    Ok(Box::new(connect))
}

fn tell(output: Output, status: &block::on_demand::Status) {
    use block::on_demand::Supply;
    if output.is_json() {
        return;
    }
    let missing = human_bytes(status.missing_bytes as f64);
    let why = match &status.supply {
        Supply::Comes => String::new(),
        Supply::Lost(why) | Supply::Wrong(why) | Supply::NotStored(why) => format!("; {why}"),
    };
    eprintln!("{missing} missing, from {}{why}", status.origin);
}

fn from_who_serves(
    args: &PullArgs,
    path: &Path,
    at: Option<&str>,
    journal: &FileJournal,
    output: Output,
) -> Result<Exit, Observation> {
    let Pulled {
        origin,
        fetched_bytes,
        untold,
    } = serving::complete(
        path,
        at,
        journal,
        &|to: &str| connector(to, args),
        &mut |status| tell(output, status),
    )?;
    output.object(&json!({
        "path": path,
        "origin": origin,
        "fetched_bytes": fetched_bytes,
        "released": untold.is_none(),
    }));
    let fetched = human_bytes(fetched_bytes as f64);
    output.line(format!(
        "{} is whole: {fetched} came from {origin}",
        path.display()
    ));
    if let Some(why) = untold {
        eprintln!(
            "vmm: warning: who serves it could not be told that it is needed no more ({why}): vmm disk serve --list there \
             tells, and --forget ends it"
        );
    }
    Ok(Exit::Done)
}

fn from_an_image(path: &Path, journal: &FileJournal, output: Output) -> Result<Exit, Observation> {
    let Completed {
        origin,
        fetched_bytes,
    } = disk_in_part::complete(path, journal, &mut |status| tell(output, status))?;
    output.object(&json!({
        "path": path,
        "origin": origin,
        "fetched_bytes": fetched_bytes,
    }));
    output.line(format!(
        "{} is whole: {} came from {}, which is of no more use",
        path.display(),
        human_bytes(fetched_bytes as f64),
        origin.display()
    ));
    Ok(Exit::Done)
}
