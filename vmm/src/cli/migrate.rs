//! `vmm migrate`.

use std::time::Duration;

use control::api::body::ResolveBody;
use control::api::client::Client;
use control::exit::{Exit, exit_of_report, local};
use control::instance::VmState;
use control::runtime_dir::{Entry, RuntimeDir, VmProcess};
use migration::disk_modes::DiskMode;
use migration::observation::Observation;
use migration::progress::{Event, Report};
use migration::request::MigrateRequest;

use super::args::MigrateArgs;
use super::event_loop::block_on;
use super::outcome::Asked;
use super::overlays::Overlays;
use super::progress::{Progress, await_interrupt};
use super::servers::Servers;
use super::wording::state_name;
use super::{left_images, names, report};
use control::output::Output;

/// How long the source's process may take to go away after the guest left.
const SOURCE_END: Duration = Duration::from_secs(2);

/// How often it is looked whether those who are to serve disks are there.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn run(
    args: &MigrateArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let name = &args.name;
    let client = Client::new(runtime, name);
    if args.cancel {
        let accepted = block_on(client.cancel())?;
        output.either(&accepted, format!("asked {name} to cancel its migration"));
        return Ok(Exit::Done);
    }
    if args.resolve {
        return resolve(name, &client, output);
    }
    if let Some(limits) = &args.set {
        let accepted = block_on(client.set_limits(limits))?;
        output.either(&accepted, format!("{name} migrates with new limits"));
        return Ok(Exit::Done);
    }
    let Some(request) = &args.request else {
        return Err(local("usage.to", "where to? Add --to"));
    };
    let to = &request.to;
    let mut request = MigrateRequest {
        addresses: names::of_destination(to)?,
        to: names::from_anywhere(to).into_owned(),
        ..request.clone()
    };
    let process = match runtime.find(name)? {
        Entry::Live { pid } => VmProcess::of(pid),
        // It is told when it is asked.
        Entry::Ended(_) | Entry::Unreadable(_) => VmProcess::of(0),
    };
    let goes_later = request
        .disks
        .iter()
        .any(|disk| request.may_go_on_demand(disk.mode));
    let mut servers = match goes_later {
        true => {
            let status = block_on(client.status())?;
            Servers::start(&mut request, &status, args.serve_at.as_deref(), runtime)?
        }
        false => Servers::none(),
    };
    let by_overlays = request
        .disks
        .iter()
        .any(|disk| disk.mode == DiskMode::Snapshot);
    let mut overlays = match by_overlays {
        true => {
            let made = block_on(async {
                let status = client.status().await?;
                Overlays::make(&mut request, &status, &client, runtime).await
            });
            match made {
                Ok(made) => Some(made),
                Err(why) => {
                    servers.are_not_needed();
                    return Err(why);
                }
            }
        }
        false => None,
    };
    servers.tell(output);
    let mut progress = Progress::new(output);
    let (mut begun, mut lost) = (false, false);
    let end = block_on(async {
        let mut interrupts =
            await_interrupt().map_err(|e| local("host.resources", format!("hear signals: {e}")))?;
        let mut events = client.migrate_and_follow(&request).await?;
        begun = true;
        let mut look = tokio::time::interval(LOOK);
        let broken = loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(Some(event)) => {
                        let event = tidied(event, &request, runtime, &mut progress);
                        progress.show(&event);
                        if let Some(end) = last(event) {
                            return Ok(end);
                        }
                    }
                    Ok(None) => break ended_early(name),
                    Err(why) => break why,
                },
                () = interrupts.next() => cancel(&client, &progress).await,
                _ = look.tick(), if !servers.is_empty() && !lost => if let Some(why) = servers.lost() {
                    lost = true;
                    progress.say(&why.to_string());
                    cancel(&client, &progress).await;
                },
            }
        };
        // That its events broke off says nothing about the migration.
        let asked = Asked {
            client: &client,
            id: events.migration_id().map(str::to_owned),
            name,
            to,
        };
        let end = asked.learn(runtime, broken, &mut interrupts).await?;
        let end = tidied(end, &request, runtime, &mut progress);
        progress.show(&end);
        last(end).ok_or_else(|| ended_early(name))
    });
    if let Some(overlays) = &mut overlays {
        overlays.discard();
    }
    let end = match end {
        Ok(end) => end,
        Err(why) => {
            // One that was refused has not begun. Of any other the servers find out by themselves.
            if !begun {
                servers.are_not_needed();
            }
            return Err(why);
        }
    };
    match end.status.as_str() {
        "completed" | "handover-unknown" => servers.go_on(output),
        _ => servers.are_not_needed(),
    }
    match end.status.as_str() {
        "planned" => output.line(format!("{name} can move to {to}")),
        "completed" => {
            report::print_completed(name, to, &end, output);
            process.wait_end(SOURCE_END);
        }
        _ => report::print_ended(name, &end),
    }
    Ok(exit_of_report(&end))
}

fn resolve(name: &str, client: &Client, output: Output) -> Result<Exit, Observation> {
    let asked = block_on(async {
        let to = client.status().await?.migration.and_then(|m| m.to);
        // Where the name cannot be looked up now, the VM knows what it stood for.
        let addresses = to.and_then(|to| names::of_destination(&to).ok());
        let body = ResolveBody {
            addresses: addresses.unwrap_or_default(),
        };
        client.resolve(&body).await
    });
    let why = match asked {
        Ok(answer) => {
            output.either(&answer, format!("{name} is {}", state_name(answer.state)));
            return Ok(Exit::Done);
        }
        Err(why) => why,
    };
    // The guest may still be waiting for its answer, which is worse than a failure.
    match block_on(client.status()) {
        Ok(status) if status.state == VmState::HandoverUnknown => {
            output.error_with(&why, Exit::NeedsResolve);
            Ok(Exit::NeedsResolve)
        }
        _ => Err(why),
    }
}

fn ended_early(name: &str) -> Observation {
    local(
        "vm.unreachable",
        format!("the VM {name:?} ended before it told how its migration ended"),
    )
}

pub(super) fn last(event: Event) -> Option<Report> {
    match event {
        Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report) => Some(report),
        _ => None,
    }
}

/// After a migration that completed, images go that were to; what came of that is told before its end is.
fn tidied(
    event: Event,
    request: &MigrateRequest,
    runtime: &RuntimeDir,
    progress: &mut Progress,
) -> Event {
    let Event::Completed(mut report) = event else {
        return event;
    };
    for observation in left_images::remove(&mut report, request, runtime) {
        report.warnings.push(observation.clone());
        progress.show(&Event::Warning { observation });
    }
    Event::Completed(report)
}

async fn cancel(client: &Client, progress: &Progress) {
    match client.cancel().await {
        Ok(_) => progress.say("cancelling the migration; the guest runs on"),
        Err(why) => progress.say(&format!("cannot cancel: {why}")),
    }
}
