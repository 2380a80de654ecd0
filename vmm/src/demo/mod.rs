//! `vmm demo`: two hosts on this machine, a busy guest, and its move from one to the other.

mod disk;
mod guest;
mod hosts;
mod summary;

use std::path::Path;
use std::time::Duration;

use control::exit::{Exit, exit_of_report, local};
use control::output::Output;
use control::units::{ByteSize, Span};
use migration::disk_modes::{DiskChoice, DiskMode};
use migration::observation::Observation;
use migration::progress::{Event, Report};
use migration::request::MigrateRequest;

use crate::cli::{DemoArgs, Interrupts, Launcher, Progress, await_interrupt, block_on};
use disk::LocalDisk;
use guest::Guest;
use hosts::Hosts;
use summary::Summary;

/// Least RAM that holds what the guest is asked to do.
const LEAST_MEMORY: u64 = 64 << 20;
/// Pages that the guest dirties per second.
const DIRTY_RATE: u32 = 2000;
/// Pages of the working set that it dirties.
const DIRTY_SET: ByteSize = ByteSize(16 << 20);
/// Requests to its disk per second, if it has one.
const BLOCK_RATE: u32 = 500;
/// Blocks that it verifies again after the move.
const BLOCKS_VERIFIED: u64 = 100;
/// Memory whose every page the guest keeps checking.
const LEDGER: ByteSize = ByteSize(8 << 20);
/// What of the RAM stays untouched: it need not travel.
const UNTOUCHED_SHARE: u64 = 4;
/// Budget for the time in which the guest is stopped.
const DOWNTIME_LIMIT: Span = Span(Duration::from_millis(100));
/// Longest that the guest may take to fill its memory.
const FILL_LIMIT: Duration = Duration::from_secs(120);
/// Longest that it may take to verify its ledger once more after the move.
const VERIFY_LIMIT: Duration = Duration::from_secs(30);

/// Name of the guest on both hosts.
const NAME: &str = "demo";

/// Runs the demo and removes all that it made.
pub(crate) fn run(
    args: &DemoArgs,
    output: Output,
    launcher: &dyn Launcher,
) -> Result<Exit, Observation> {
    if let Some(path) = &args.export_guest {
        return export(path, output, launcher);
    }
    let memory = args.memory.0;
    if memory < LEAST_MEMORY || !memory.is_multiple_of(1 << 20) {
        let least = ByteSize(LEAST_MEMORY);
        let message = format!("the demo needs whole MiB of memory, {least} or more");
        return Err(local("usage.memory", message));
    }
    let hosts = Hosts::new()?;
    block_on(async {
        let mut interrupts =
            await_interrupt().map_err(|e| local("host.resources", format!("hear signals: {e}")))?;
        let shown = tokio::select! {
            shown = show(args, &hosts, output) => shown,
            () = interrupts.next() => {
                if !output.is_json() {
                    eprintln!("\nvmm: interrupted; removing both guests");
                }
                Ok(Exit::Cancelled)
            }
        };
        clean(&hosts, &mut interrupts).await;
        shown
    })
}

fn export(path: &Path, output: Output, launcher: &dyn Launcher) -> Result<Exit, Observation> {
    let image = launcher.probe_guest();
    std::fs::write(path, image)
        .map_err(|e| local("demo.export", format!("write {}: {e}", path.display())))?;
    output.either(
        &serde_json::json!({ "guest": path, "bytes": image.len() }),
        format!("{}: a PVH guest of {} bytes", path.display(), image.len()),
    );
    Ok(Exit::Done)
}

async fn clean(hosts: &Hosts, interrupts: &mut Interrupts) {
    tokio::select! {
        () = hosts.clean() => {}
        // Impatience: what is left then is named by the last words of `Hosts`.
        () = interrupts.next() => {}
    }
}

async fn show(args: &DemoArgs, hosts: &Hosts, output: Output) -> Result<Exit, Observation> {
    let memory = args.memory;
    let disk = match args.disks {
        true => Some(LocalDisk::make(hosts.folder())?),
        false => None,
    };
    let fill = ByteSize((memory.0 - memory.0 / UNTOUCHED_SHARE) >> 20 << 20);
    output.line(format!(
        "starting a guest with {memory}: {fill} random, {DIRTY_RATE} pages dirtied per second"
    ));
    let mut cmdline = format!(
        "fill=random fill_size={fill} ledger={LEDGER} dirty_rate={DIRTY_RATE} \
         dirty_set={DIRTY_SET} tick_ms=100"
    );
    let memory_text = memory.to_string();
    let mut run = vec!["run", NAME, "--detach", "--memory", &memory_text];
    let mut receive = vec![
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--name",
        NAME,
        "--detach",
    ];
    let placed;
    if let Some(disk) = &disk {
        output.line(format!(
            "it has a disk of {} on its host, {} of them data, and writes to it",
            ByteSize(disk::SIZE),
            ByteSize(disk::CONTENT)
        ));
        let written = ByteSize(disk::WRITTEN);
        cmdline.push_str(&format!(
            " block=verify,size={written} block_rate={BLOCK_RATE}"
        ));
        placed = [
            format!("{},id={}", disk.at_source.display(), disk::ID),
            format!("{}={},create", disk::ID, disk.at_destination.display()),
        ];
        run.extend(["--disk", &placed[0]]);
        receive.extend(["--disk", &placed[1]]);
    }
    run.extend(["--cmdline", &cmdline]);
    hosts.source.command(&run).await?;
    let source = Guest::new(&hosts.source, NAME);
    let ready = source.ready(FILL_LIMIT).await?;
    source.ticks(2, VERIFY_LIMIT).await?;
    output.line(format!(
        "guest is ready after {} ms; a second host listens",
        ready.up_ms
    ));

    let status = hosts.destination.command(&receive).await?;
    let to = status
        .listen
        .ok_or_else(|| local("demo.listen", "receive tells no address"))?;

    // From here on the guest's own clock counts: its largest gap is the downtime that it saw.
    source.forget_gap()?;
    // One tick until it has forgotten, and some to see what is usual for it (it prints, for one).
    let usual = source.ticks(4, VERIFY_LIMIT).await?;
    output.line(format!("moving it to {to}"));
    let travelling = disk
        .iter()
        .map(|_| DiskChoice::new(None, DiskMode::Precopy));
    let travelling = travelling.collect();
    let report = migrate(hosts, &to, travelling, output).await?;
    if report.status != "completed" {
        return Err(report
            .error
            .clone()
            .unwrap_or_else(|| local("demo.migration", format!("it ended as {}", report.status))));
    }
    let destination = Guest::new(&hosts.destination, NAME);
    let blocks = disk.as_ref().map_or(0, |_| BLOCKS_VERIFIED);
    let after = destination.verified_again(blocks, VERIFY_LIMIT).await?;
    let disk = disk.map(|disk| disk.is_alike()).transpose();
    let disk = disk.map_err(|e| local("demo.disk", format!("compare the images: {e}")))?;
    let summary = Summary {
        report: &report,
        guest: after,
        usual_gap_us: usual.max_gap_us,
        disk_is_alike: disk,
    };
    summary.print(output);
    if summary.is_sound() {
        Ok(exit_of_report(&report))
    } else {
        Ok(Exit::Failed)
    }
}

async fn migrate(
    hosts: &Hosts,
    to: &str,
    disks: Vec<DiskChoice>,
    output: Output,
) -> Result<Report, Observation> {
    let request = MigrateRequest {
        downtime_limit: DOWNTIME_LIMIT,
        disks,
        ..MigrateRequest::new(to)
    };
    let mut progress = Progress::new(output);
    let client = hosts.source.client(NAME);
    let mut events = client.migrate_and_follow(&request).await?;
    while let Some(event) = events.next().await? {
        progress.show(&event);
        if let Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report) = event {
            return Ok(report);
        }
    }
    Err(local(
        "demo.migration",
        "the source ended before it told how the migration ended",
    ))
}
