//! `list`, `status`, `pause`, `resume`, `stop` and `wait`.

use std::time::{Duration, Instant};

use migration::observation::Observation;
use migration::progress::Event;

use super::exit::{Exit, exit_of, local};
use super::hold::is_end;
use super::output::explain;
use super::{Output, block_on};
use crate::api::client::Client;
use crate::instance::{MigrationStatus, StopMode, VmState, VmStatus};
use crate::runtime_dir::{Entry, RuntimeDir};
use crate::units::{ByteSize, Span, human_ms};

/// How long a process may take to go away once its VM has ended.
const PROCESS_END: Duration = Duration::from_secs(10);
/// How long a VM may take to tell its status to `list`.
const LIST_PATIENCE: Duration = Duration::from_secs(2);
/// One wait of `wait`.
const WAIT_STEP_MS: u64 = 60_000;

/// Name of a state, as in JSON.
pub(crate) fn state_name(state: VmState) -> &'static str {
    match state {
        VmState::Incoming => "incoming",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::HandingOver => "handing-over",
        VmState::HandoverUnknown => "handover-unknown",
        VmState::Migrated => "migrated",
        VmState::Stopped => "stopped",
        VmState::Failed => "failed",
    }
}

pub(super) fn list(runtime: &RuntimeDir, output: Output) -> Result<Exit, Observation> {
    let entries = runtime.list()?;
    let statuses = block_on(async {
        let mut statuses = Vec::new();
        for (name, entry) in entries {
            let status = match entry {
                Entry::Failed(status) => Ok(*status),
                Entry::Live { .. } => {
                    let client = Client::new(runtime, &name);
                    match tokio::time::timeout(LIST_PATIENCE, client.status()).await {
                        Ok(status) => status,
                        Err(_) => Err(local("vm.unreachable", format!("{name} does not answer"))),
                    }
                }
            };
            statuses.push((name, status));
        }
        Ok(statuses)
    })?;
    let width = statuses
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    if !statuses.is_empty() {
        output.line(format!(
            "{:width$}  {:16}  {:>7}  {:>4}  {:>8}",
            "NAME", "STATE", "PID", "CPUS", "MEMORY"
        ));
    }
    for (name, status) in statuses {
        match status {
            Ok(s) => output.either(
                &s,
                format!(
                    "{name:width$}  {:16}  {:>7}  {:>4}  {:>8}",
                    state_name(s.state),
                    s.pid,
                    s.cpus,
                    ByteSize(s.memory_bytes).to_string()
                ),
            ),
            // One that ended between the look and the question is not worth a word.
            Err(why) if why.id == "vm.not-found" => {}
            Err(why) => {
                output.object(&serde_json::json!({ "name": name, "error": why }));
                output.line(format!("{name:width$}  does not answer"));
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) fn status(
    name: &str,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let status = match runtime.find(name)? {
        Entry::Failed(status) => *status,
        Entry::Live { .. } => block_on(Client::new(runtime, name).status())?,
    };
    output.object(&status);
    if !output.is_json() {
        describe(&status, runtime, output);
    }
    Ok(Exit::Done)
}

fn describe(status: &VmStatus, runtime: &RuntimeDir, output: Output) {
    let VmStatus {
        name,
        state,
        pid,
        cpus,
        memory_bytes,
        uptime_ms,
        listen,
        migration,
        error,
    } = status;
    output.line(format!("name       {name}"));
    output.line(format!("state      {}", state_name(*state)));
    output.line(format!(
        "process    {pid}, up {}",
        human_ms(*uptime_ms as f64)
    ));
    if *memory_bytes > 0 {
        output.line(format!(
            "machine    {cpus} CPUs, {}",
            ByteSize(*memory_bytes)
        ));
    }
    if let Some(listen) = listen {
        output.line(format!("listens at {listen}"));
    }
    if let Some(MigrationStatus { id, last }) = migration
        && (id.is_some() || last.is_some())
    {
        let id = id.as_deref().or_else(|| told_id(last.as_ref()?));
        output.line(format!(
            "migration  {} {}",
            id.unwrap_or("-"),
            last.as_ref()
                .map(super::progress::describe_event)
                .unwrap_or_default()
        ));
    }
    if *state == VmState::HandoverUnknown {
        output.line(format!("to do      vmm migrate {name} --resolve"));
    }
    if let Some(error) = error {
        output.line(format!("error      {}", explain(error).trim_end()));
        output.line(format!("log        {}", runtime.vmm_log(name).display()));
    }
}

/// Identifier of the migration that an event ended.
fn told_id(last: &Event) -> Option<&str> {
    match last {
        Event::Completed(report) | Event::Failed(report) | Event::Cancelled(report) => {
            Some(report.migration_id.as_str()).filter(|id| !id.is_empty())
        }
        Event::Phase { .. }
        | Event::Iteration(_)
        | Event::Progress { .. }
        | Event::Warning { .. } => None,
    }
}

pub(super) fn pause(name: &str, runtime: &RuntimeDir, output: Output) -> Result<Exit, Observation> {
    let status = block_on(Client::new(runtime, name).pause())?;
    output.either(&status, format!("{name} is {}", state_name(status.state)));
    Ok(Exit::Done)
}

pub(super) fn resume(
    name: &str,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let status = block_on(Client::new(runtime, name).resume())?;
    output.either(&status, format!("{name} is {}", state_name(status.state)));
    Ok(Exit::Done)
}

pub(super) fn stop(
    name: &str,
    force: bool,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    if let Entry::Failed(status) = runtime.find(name)? {
        runtime.forget(name)?;
        output.either(&status, format!("{name} had failed; its logs are removed"));
        return Ok(Exit::Done);
    }
    let mode = if force {
        StopMode::Force
    } else {
        StopMode::Graceful
    };
    let status = block_on(Client::new(runtime, name).stop(mode))?;
    if !runtime.wait_gone(name, PROCESS_END) {
        return Err(local(
            "vm.process-stuck",
            format!("process {} does not end", status.pid),
        ));
    }
    output.either(&status, format!("{name} is {}", state_name(status.state)));
    match status.error {
        Some(why) if status.state == VmState::Failed => Err(why),
        _ => Ok(Exit::Done),
    }
}

pub(super) fn wait(
    name: &str,
    wanted: Option<VmState>,
    timeout: Option<Span>,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let deadline = timeout.map(|span| Instant::now() + span.0);
    let status = block_on(wait_for(name, wanted, deadline, runtime))?;
    output.either(&status, format!("{name} is {}", state_name(status.state)));
    if let (VmState::Failed, Some(why)) = (status.state, &status.error) {
        eprint!("vmm: {}", explain(why));
        return Ok(exit_of(why));
    }
    Ok(if status.state == VmState::Failed {
        Exit::Failed
    } else {
        Exit::Done
    })
}

async fn wait_for(
    name: &str,
    wanted: Option<VmState>,
    deadline: Option<Instant>,
    runtime: &RuntimeDir,
) -> Result<VmStatus, Observation> {
    let reached = |state| wanted == Some(state) || is_end(state);
    let client = Client::new(runtime, name);
    let mut status = match runtime.find(name)? {
        Entry::Failed(status) => *status,
        Entry::Live { .. } => client.status().await?,
    };
    while !reached(status.state) {
        let step = match deadline {
            None => WAIT_STEP_MS,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let state = state_name(status.state);
                    return Err(local("vm.wait-timeout", format!("{name} is still {state}")));
                }
                (left.as_millis() as u64 + 1).min(WAIT_STEP_MS)
            }
        };
        match client.wait(status.state, step).await {
            Ok(state) => status.state = state,
            Err(why) => {
                return match runtime.find(name) {
                    Ok(Entry::Failed(status)) => Ok(*status),
                    _ => Err(why),
                };
            }
        }
        // The state alone was told: the rest, such as an error, belongs to it.
        if let Ok(after) = client.status().await {
            if after.state == status.state || is_end(after.state) {
                status = after;
            }
        } else if let Ok(Entry::Failed(failed)) = runtime.find(name) {
            status = *failed;
        }
    }
    match wanted {
        Some(wanted) if status.state != wanted => Err(local(
            "vm.ended",
            format!(
                "{name} is {} and will not be {}",
                state_name(status.state),
                state_name(wanted)
            ),
        )),
        _ => Ok(status),
    }
}
