//! A migration's report, for people.

use control::units::{human_bytes, human_ms};
use migration::observation::Observation;
use migration::progress::{DowntimeParts, Report};
use migration::vm::RunState;

use control::output::{Output, explain};

/// Names and values of the downtime's parts that are known, in the order in which they pass.
pub(crate) fn downtime_parts(parts: &DowntimeParts) -> Vec<(&'static str, f64)> {
    let DowntimeParts {
        stop,
        last_pages,
        state_save,
        state_send,
        state_load,
        commit,
    } = parts;
    [
        ("stop", *stop),
        ("last pages", *last_pages),
        ("state save", *state_save),
        ("state send", *state_send),
        ("state load", Some(*state_load)),
        ("commit", Some(*commit)),
    ]
    .into_iter()
    .filter_map(|(name, ms)| Some((name, ms?)))
    .collect()
}

/// Prints the report of a migration that completed.
pub(super) fn print_completed(name: &str, to: &str, report: &Report, output: Output) {
    let Report {
        total_ms,
        downtime_ms,
        downtime,
        setup_ms,
        iterations: _,
        iterations_omitted: _,
        encodings,
        disks,
        wire_bytes,
        guest_bytes,
        throttle_max,
        verified,
        forecast_downtime_ms,
        status: _,
        migration_id: _,
        run_state,
        reconnects,
        // Told as they came.
        warnings: _,
        error: _,
    } = report;
    output.line(match run_state {
        RunState::Running => format!("{name} runs at {to}"),
        RunState::Paused => format!("{name} is at {to}, paused as before"),
    });
    output.line(format!(
        "  total     {} (setup {})",
        human_ms(*total_ms),
        human_ms(*setup_ms)
    ));
    if let (Some(downtime_ms), Some(forecast)) = (downtime_ms, forecast_downtime_ms) {
        output.line(format!(
            "  downtime  {} (forecast {})",
            human_ms(*downtime_ms),
            human_ms(*forecast)
        ));
    }
    for (part, ms) in downtime_parts(downtime) {
        output.line(format!("    {part:10}  {}", human_ms(ms)));
    }
    let passes = report.passes().unwrap_or_default();
    output.line(format!(
        "  memory    {} of guest, {} on the wire, {} {}",
        human_bytes(*guest_bytes as f64),
        human_bytes(*wire_bytes as f64),
        passes,
        if passes == 1 { "pass" } else { "passes" }
    ));
    for (encoding, count) in encodings {
        output.line(format!(
            "    {encoding:10}  {} pages, {}",
            count.pages,
            human_bytes(count.bytes as f64)
        ));
    }
    if let Some(disks) = disks {
        output.line(format!(
            "  disks     {} of that, {} of zeroes did not travel",
            human_bytes(disks.bytes as f64),
            human_bytes(disks.zero_bytes as f64)
        ));
        if let present @ 1.. = disks.present_bytes {
            let present = human_bytes(present as f64);
            output.line(format!("    present     {present} were there already"));
        }
        for disk in &disks.travelling {
            let why = disk.why.as_deref().unwrap_or("as asked for");
            output.line(format!("    {:10}  copied: {why}", disk.id));
        }
        for left in &disks.left {
            let path = left.path.as_deref().unwrap_or("its image here");
            let fate = match left.removed {
                true => "removed",
                false => "kept, marked as one whose disk has moved away",
            };
            output.line(format!("    {:10}  {path}: {fate}", left.id));
        }
    }
    if let Some(percent @ 1..) = *throttle_max {
        output.line(format!(
            "  throttled to {} % of its CPU at most",
            100 - percent.min(100)
        ));
    }
    if let times @ 1.. = *reconnects {
        output.line(format!("  link      lost and made anew, {times} times"));
    }
    output.line(format!(
        "  verified  {}",
        if *verified { "yes" } else { "no" }
    ));
}

/// Says why a migration did not complete, and where the guest is.
pub(super) fn print_ended(name: &str, report: &Report) {
    let reason = report.error.as_ref().map(|error| explain(&untitled(error)));
    match report.status.as_str() {
        "cancelled" => {
            let asked = |error: &Observation| {
                error.causes.len() == 1 && error.causes[0].id == "migration.cancelled"
            };
            if let (Some(reason), false) = (&reason, report.error.as_ref().is_some_and(asked)) {
                eprint!("vmm: {reason}");
            }
            eprintln!("vmm: cancelled; {name} was not moved");
        }
        "handover-unknown" => {
            eprint!(
                "vmm: {}",
                reason.unwrap_or_else(|| "the answer to commit was lost\n".into())
            );
            eprintln!(
                "vmm: {name} is paused until its destination answers, which it is asked to by itself; \
                 `vmm migrate {name} --resolve` asks at once"
            );
        }
        _ => {
            eprint!(
                "vmm: {}",
                reason.unwrap_or_else(|| "the migration failed\n".into())
            );
            match report.error.as_ref() {
                Some(error) if error.mentions("guest.ended") => eprintln!("vmm: {name} has ended"),
                _ => eprintln!("vmm: {name} was not moved"),
            }
        }
    }
}

/// Without its phase where the message names it already.
fn untitled(observation: &Observation) -> Observation {
    let mut observation = observation.clone();
    if observation
        .phase
        .as_ref()
        .is_some_and(|phase| observation.message.ends_with(&format!("in phase {phase}")))
    {
        observation.phase = None;
    }
    observation
}
