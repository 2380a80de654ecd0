//! `vmm list`.

use std::time::Duration;

use control::api::client::Client;
use control::exit::{Exit, local};
use control::instance::VmStatus;
use control::runtime_dir::{Entry, RuntimeDir};
use control::units::ByteSize;
use migration::observation::Observation;

use super::event_loop::block_on;
use super::wording::{ending, state_name};
use control::output::Output;

/// How long VMs may take to tell their status.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which VMs are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that live.
    Live,
    /// Those that have ended too.
    All,
}

pub(super) fn run(which: Which, runtime: &RuntimeDir, output: Output) -> Result<Exit, Observation> {
    let entries = runtime.list()?;
    let asked = block_on(async {
        // All at once: those that do not answer are waited for together.
        let asking: Vec<_> = entries
            .into_iter()
            .filter(|(_, entry)| which == Which::All || !matches!(entry, Entry::Ended(_)))
            .map(|(name, entry)| {
                let client = Client::new(runtime, &name);
                let status = tokio::spawn(async move {
                    match entry {
                        Entry::Ended(status) => Ok(*status),
                        Entry::Unreadable(why) => Err(*why),
                        Entry::Live { .. } => client.status_within(PATIENCE).await,
                    }
                });
                (name, status)
            })
            .collect();
        let mut asked = Vec::with_capacity(asking.len());
        for (name, status) in asking {
            let status = status
                .await
                .unwrap_or_else(|e| Err(local("vm.unreachable", format!("{name}: {e}"))));
            match status {
                // One that ended between the look and the question.
                Ok(status) if which == Which::Live && status.state.is_final() => {}
                Err(why) if why.id == "vm.not-found" => {}
                status => asked.push((name, status)),
            }
        }
        Ok(asked)
    })?;
    let names = asked.iter().map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0).max(4);
    if !asked.is_empty() {
        output.line(format!(
            "{:width$}  {:16}  {:>7}  {:>4}  {:>8}",
            "NAME", "STATE", "PID", "CPUS", "MEMORY"
        ));
    }
    for (name, status) in asked {
        match status {
            Ok(status) => output.either(&status, format!("{name:width$}  {}", row(&status))),
            Err(why) => {
                output.object(&serde_json::json!({ "name": name, "error": why }));
                output.line(format!("{name:width$}  {}", unknown(&why)));
            }
        }
    }
    Ok(Exit::Done)
}

fn row(status: &VmStatus) -> String {
    let memory = ByteSize(status.memory_bytes).to_string();
    let row = format!(
        "{:16}  {:>7}  {:>4}  {memory:>8}",
        state_name(status.state),
        status.pid,
        status.cpus,
    );
    match &status.end {
        Some(end) => format!("{row}  {}", ending(end)),
        None => row,
    }
}

/// What stands in the place of a status.
fn unknown(why: &Observation) -> String {
    match why.id.as_str() {
        "vm.unreachable" | "vm.not-responding" => "does not answer".into(),
        _ => why.message.clone(),
    }
}
