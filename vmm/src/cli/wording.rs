//! What a VM is doing or how it ended, in words: the same ones from every command.

use control::instance::{Ending, MissingStatus, VmEnd, VmState, VmStatus};
use control::units::human_bytes;

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

/// What of a disk is missing, a line for each host that has some of it, and what that means for the guest.
pub(super) fn missing(missing: &MissingStatus) -> Vec<String> {
    let MissingStatus {
        bytes,
        from,
        sources,
        on_source_loss,
        priority,
        why,
    } = missing;
    let mut lines: Vec<_> = match &sources[..] {
        // Of one source the layer knows best; and an earlier version tells of no other.
        [] | [_] => vec![waiting_for(from, *bytes, why.as_deref())],
        sources => sources
            .iter()
            .map(|source| waiting_for(&source.from, source.bytes, source.why.as_deref()))
            .collect(),
    };
    if let Some(last) = lines.last_mut() {
        if !priority.is_background() {
            last.push_str(&format!(", pull {priority}"));
        }
        if !on_source_loss.is_pause() {
            last.push_str(&format!(", on source loss {on_source_loss}"));
        }
    }
    lines
}

fn waiting_for(from: &str, bytes: u64, why: Option<&str>) -> String {
    let bytes = human_bytes(bytes as f64);
    let why = why.map_or(String::new(), |why| format!(" ({why})"));
    format!("waiting for {from}: {bytes} missing{why}")
}

/// How a VM ended, in words.
pub(super) fn ending(end: &VmEnd) -> String {
    let by = |what: &str| match end.by.as_deref() {
        Some(by) if by.starts_with("stop") => format!("{what} by `vmm {by}`"),
        Some(by) => format!("{what} by {by}"),
        None => what.to_owned(),
    };
    match end.how {
        Ending::PoweredOff => "the guest powered off".into(),
        Ending::Reset => "the guest asked for a reset".into(),
        Ending::Crashed => "the guest crashed".into(),
        Ending::Stopped => by("stopped"),
        Ending::Killed => by("its process was killed"),
        Ending::Migrated => match &end.to {
            Some(to) => format!("moved to {to}"),
            None => "moved to another host".into(),
        },
        Ending::NotReceived => "no guest came in".into(),
        Ending::Unknown => "nobody knows how".into(),
    }
}

/// One line that says what a VM is doing, or how it ended.
pub(super) fn described(status: &VmStatus) -> String {
    let VmStatus {
        name, state, end, ..
    } = status;
    let state = state_name(*state);
    match end {
        Some(end) if end.how == Ending::Stopped => format!("{name} is {}", ending(end)),
        Some(end) => format!("{name} is {state}: {}", ending(end)),
        None => format!("{name} is {state}"),
    }
}
