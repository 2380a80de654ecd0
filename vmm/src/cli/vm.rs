//! `status`, `pause`, `resume`, `stop` and `forget`.

use std::time::{Duration, Instant};

use control::api::client::Client;
use control::disk_move::ImageFormat;
use control::exit::{Exit, local};
use control::instance::{MigrationStatus, Requester, StopMode, VmEnd, VmState, VmStatus};
use control::runtime_dir::{Entry, Forgotten, RuntimeDir, VmProcess};
use control::units::{ByteSize, human_ms};
use migration::observation::Observation;
use migration::progress::Event;
use migration::wire::control::Resolution;

use super::event_loop::block_on;
use super::process;
use super::progress::describe_event;
use super::wait::PROCESS_END;
use super::wording::{described, ending, missing as missing_told, state_name};
use control::output::{Output, explain};

/// How long `stop --force` leaves it to a VM to end; less than the five seconds after which it is gone.
const FORCE: Duration = Duration::from_millis(4750);
/// How long the VM may take of it to answer: at least the rest is for its process to end.
const FORCE_ANSWER: Duration = Duration::from_millis(3750);

pub(super) fn status(
    name: &str,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let status = match runtime.find(name)? {
        Entry::Ended(status) => *status,
        Entry::Unreadable(why) => return Err(*why),
        Entry::Live { .. } => block_on(Client::new(runtime, name).status())?,
    };
    output.object(&status);
    if !output.is_json() {
        describe(&status, output);
    }
    Ok(Exit::Done)
}

fn describe(status: &VmStatus, output: Output) {
    let VmStatus {
        name,
        state,
        pid,
        cpus,
        memory_bytes,
        disks,
        uptime_ms,
        listen,
        migration,
        error,
        end,
        failed_migrations,
        last_failure,
    } = status;
    output.line(format!("name       {name}"));
    output.line(format!("state      {}", state_name(*state)));
    let up = human_ms(*uptime_ms as f64);
    match end {
        None => output.line(format!("process    {pid}, up {up}")),
        Some(end) => {
            let now = VmEnd::new(end.how).at_us;
            let ago = human_ms(now.saturating_sub(end.at_us) as f64 / 1e3);
            output.line(format!("ended      {}, {ago} ago", ending(end)));
            if *uptime_ms > 0 {
                output.line(format!("process    {pid}, was up {up}"));
            }
        }
    }
    if *memory_bytes > 0 {
        output.line(format!(
            "machine    {cpus} CPUs, {}",
            ByteSize(*memory_bytes)
        ));
    }
    for disk in disks {
        let format = match disk.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        let size = ByteSize(disk.size_bytes);
        let only = if disk.read_only { ", read-only" } else { "" };
        output.line(format!(
            "disk       {} at {} ({format}, {size}{only})",
            disk.id, disk.path
        ));
        if let Some(missing) = &disk.missing {
            for line in missing_told(missing) {
                output.line(format!("           {line}"));
            }
        }
    }
    if let Some(listen) = listen {
        output.line(format!("listens at {listen}"));
    }
    if let Some(MigrationStatus { id, to, last, .. }) = migration
        && (id.is_some() || last.is_some())
    {
        let id = id.as_deref().or_else(|| told_id(last.as_ref()?));
        output.line(format!(
            "migration  {}{} {}",
            id.unwrap_or("-"),
            to.as_ref()
                .map(|to| format!(" to {to}:"))
                .unwrap_or_default(),
            last.as_ref().map(describe_event).unwrap_or_default()
        ));
    }
    match (state, migration.as_ref().and_then(|m| m.resolution)) {
        (VmState::HandoverUnknown, _) => output.line(format!(
            "doubt      its destination is asked until it answers; at once: vmm migrate {name} --resolve"
        )),
        (_, Some(Resolution::NeverRan)) => {
            output.line("resolved   it never ran at its destination, and goes on here");
        }
        (_, Some(Resolution::Ran)) => output.line("resolved   it runs at its destination"),
        (_, None) => {}
    }
    if let Some(why) = last_failure {
        output.line(format!("failed     {failed_migrations} times, last:"));
        output.line(explain(why).trim_end());
    }
    if let Some(error) = error {
        output.line(format!("error      {}", explain(error).trim_end()));
    }
    if end.is_some() {
        output.line(format!("logs       vmm logs {name} [--vmm]"));
    } else if error.is_some() {
        output.line(format!("log        vmm logs {name} --vmm"));
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
        | Event::Warning { .. }
        | Event::LinkLost { .. }
        | Event::Reconnected { .. } => None,
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
    let pid = match runtime.find(name)? {
        Entry::Live { pid } => pid,
        Entry::Unreadable(why) => return Err(*why),
        Entry::Ended(status) => return stop_ended(&status, output),
    };
    let process = VmProcess::of(pid);
    if force {
        return stop_by_force(name, &process, runtime, output);
    }
    let status = block_on(Client::new(runtime, name).stop(StopMode::Graceful))?;
    // Its memory and taps are free too, for whoever runs the next one now.
    if !process.wait_end(PROCESS_END) {
        return Err(local(
            "vm.process-stuck",
            format!("process {} does not end", status.pid),
        ));
    }
    stopped(status, output)
}

/// Has the VM end itself, and ends the process of one that does not.
fn stop_by_force(
    name: &str,
    process: &VmProcess,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let until = Instant::now() + FORCE;
    let asked = block_on(async {
        let stop = async { Client::new(runtime, name).stop(StopMode::Force).await };
        Ok(tokio::time::timeout(FORCE_ANSWER, stop).await)
    })?;
    let left = until.saturating_duration_since(Instant::now());
    match asked {
        Ok(Ok(status)) if process.wait_end(left) => stopped(status, output),
        // It said no.
        Ok(Err(why)) if !matches!(why.id.as_str(), "vm.not-responding" | "vm.unreachable") => {
            Err(why)
        }
        Ok(_) | Err(_) => {
            process::kill(name, runtime)?;
            runtime.note_killed(name, &Requester::Client.told(StopMode::Force))?;
            let text = format!("{name} did not end by itself: its process was killed");
            match runtime.find(name)? {
                Entry::Ended(status) => output.either(&*status, text),
                // Somebody uses the name again.
                Entry::Live { .. } | Entry::Unreadable(_) => output.line(text),
            }
            Ok(Exit::Done)
        }
    }
}

fn stopped(status: VmStatus, output: Output) -> Result<Exit, Observation> {
    output.either(&status, described(&status));
    match status.error {
        Some(why) if status.state == VmState::Failed => Err(why),
        _ => Ok(Exit::Done),
    }
}

/// There is nothing to stop, and what is known of the end stays: somebody may want to read it.
fn stop_ended(status: &VmStatus, output: Output) -> Result<Exit, Observation> {
    if status.state == VmState::Migrated {
        return Err(local("vm.ended", described(status)));
    }
    output.either(status, described(status));
    Ok(Exit::Done)
}

pub(super) fn forget(
    name: &str,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    match runtime.forget(name)? {
        Forgotten::Wholly => {
            output.either(
                &serde_json::json!({ "name": name }),
                format!("{name} is forgotten"),
            );
            Ok(Exit::Done)
        }
        Forgotten::But(what) => Err(local(
            "vm.foreign-folder",
            format!(
                "{name} is forgotten, but its folder stays, in {}: vmm did not make {what} in it",
                runtime.path().display()
            ),
        )),
    }
}
