//! `vmm migrate`.

use std::time::Duration;

use migration::observation::Observation;
use migration::progress::{Event, Report};

use super::args::{MigrateArgs, milliseconds};
use super::exit::{Exit, exit_of_report, local};
use super::progress::{Progress, await_interrupt};
use super::vm::state_name;
use super::{Output, block_on, report};
use crate::api::body::MigrateBody;
use crate::api::client::Client;
use crate::instance::VmState;
use crate::runtime_dir::RuntimeDir;

/// How long the source's process may take to go away after the guest left.
const SOURCE_END: Duration = Duration::from_secs(2);

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
    let Some(to) = &args.to else {
        return Err(local("usage.to", "where to? Add --to"));
    };
    let body = MigrateBody {
        to: to.clone(),
        downtime_limit_ms: milliseconds(args.downtime_limit),
        bandwidth_bytes_per_s: args.bandwidth.and_then(|rate| rate.0),
        streams: args.streams,
        timeout_ms: args.timeout.map(milliseconds),
        on_timeout: args.on_timeout,
        verify: args.verify,
        insecure: args.insecure,
        plan: args.plan,
    };
    let mut progress = Progress::new(output);
    let end = block_on(async {
        let mut interrupts =
            await_interrupt().map_err(|e| local("host.resources", format!("hear signals: {e}")))?;
        let mut events = client.migrate_and_follow(&body).await?;
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(event) => {
                        progress.show(&event);
                        if let Some(end) = last(event) {
                            return Ok(end);
                        }
                    }
                    None => return Err(ended_early(name)),
                },
                () = interrupts.next() => cancel(&client, &progress).await,
            }
        }
    });
    let end = end?;
    match end.status.as_str() {
        "planned" => output.line(format!("{name} can move to {to}")),
        "completed" => {
            report::print_completed(name, to, &end, output);
            runtime.wait_gone(name, SOURCE_END);
        }
        _ => report::print_ended(name, &end),
    }
    Ok(exit_of_report(&end))
}

fn resolve(name: &str, client: &Client, output: Output) -> Result<Exit, Observation> {
    let why = match block_on(client.resolve()) {
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

fn last(event: Event) -> Option<Report> {
    match event {
        Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report) => Some(report),
        _ => None,
    }
}

async fn cancel(client: &Client, progress: &Progress) {
    match client.cancel().await {
        Ok(_) => progress.say("cancelling the migration; the guest runs on"),
        Err(why) => progress.say(&format!("cannot cancel: {why}")),
    }
}
