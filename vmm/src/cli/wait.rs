//! `vmm wait`.

use std::time::{Duration, Instant};

use control::api::client::Client;
use control::exit::{Exit, exit_of, local};
use control::instance::{VmState, VmStatus};
use control::runtime_dir::{Entry, RuntimeDir, VmProcess};
use control::units::Span;
use migration::observation::Observation;

use super::event_loop::block_on;
use super::wording::{described, state_name};
use control::output::{Output, explain};

/// How long the first look at the state may take, however short the time.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// One wait of many.
const STEP_MS: u64 = 60_000;
/// How long a process may take to go away once its VM has ended.
pub(super) const PROCESS_END: Duration = Duration::from_secs(10);

pub(super) fn run(
    name: &str,
    wanted: Option<VmState>,
    timeout: Option<Span>,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let deadline = timeout.map(|span| Instant::now() + span.0);
    let status = block_on(wait_for(name, wanted, deadline, runtime))?;
    output.either(&status, described(&status));
    if status.state != VmState::Failed {
        return Ok(Exit::Done);
    }
    Ok(match &status.error {
        Some(why) => {
            eprint!("vmm: {}", explain(why));
            exit_of(why)
        }
        None => Exit::Failed,
    })
}

async fn wait_for(
    name: &str,
    wanted: Option<VmState>,
    deadline: Option<Instant>,
    runtime: &RuntimeDir,
) -> Result<VmStatus, Observation> {
    let reached = |state: VmState| wanted == Some(state) || state.is_final();
    let client = Client::new(runtime, name);
    let late = |seen: &str| local("vm.wait-timeout", format!("{name} {seen}"));
    let process = match runtime.find(name)? {
        Entry::Live { pid } => Some(VmProcess::of(pid)),
        Entry::Ended(_) | Entry::Unreadable(_) => None,
    };
    let mut known: Option<VmStatus> = None;
    let mut asked = false;
    let status = loop {
        let seen = match &known {
            Some(status) if reached(status.state) => break status.clone(),
            Some(status) => format!("is still {}", state_name(status.state)),
            None => "has not answered".to_owned(),
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = match left {
            Some(left) if !asked => Some(left.max(FIRST_LOOK)),
            Some(left) if left.is_zero() => return Err(late(&seen)),
            left => left,
        };
        asked = true;
        let looked = look(&client, known.as_ref(), left, runtime, name);
        let looked = match left {
            Some(left) => tokio::time::timeout(left, looked).await,
            None => Ok(looked.await),
        };
        match looked {
            Ok(Ok(status)) => known = Some(status),
            // It may go on.
            Ok(Err(why)) if why.id == "vm.not-responding" => {}
            Ok(Err(why)) => return Err(why),
            Err(_) => return Err(late(&seen)),
        }
    };
    if let (true, Some(process)) = (status.state.is_final(), process) {
        // Its memory and taps are free too, for whoever runs the next one now.
        process.wait_end(PROCESS_END);
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

/// The status of a VM: at once if none is `known`, else once its state is another, or `left` has passed.
async fn look(
    client: &Client,
    known: Option<&VmStatus>,
    left: Option<Duration>,
    runtime: &RuntimeDir,
    name: &str,
) -> Result<VmStatus, Observation> {
    let Some(known) = known else {
        return match runtime.find(name)? {
            Entry::Ended(status) => Ok(*status),
            Entry::Unreadable(why) => Err(*why),
            Entry::Live { .. } => client.status().await,
        };
    };
    let step = left.map_or(STEP_MS, |left| {
        u64::try_from(left.as_millis()).map_or(STEP_MS, |ms| (ms + 1).min(STEP_MS))
    });
    let mut status = known.clone();
    match client.wait(status.state, step).await {
        Ok(state) => status.state = state,
        Err(why) => {
            return match runtime.find(name) {
                Ok(Entry::Ended(status)) => Ok(*status),
                _ => Err(why),
            };
        }
    }
    // The state alone was told: the rest, such as an error, belongs to it.
    if let Ok(after) = client.status().await
        && (after.state == status.state || after.state.is_final())
    {
        status = after;
    }
    Ok(status)
}
