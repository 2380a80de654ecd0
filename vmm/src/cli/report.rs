//! A migration's report, for people.

use migration::progress::{DowntimeParts, Report};

use super::Output;
use super::output::explain;
use crate::units::{human_bytes, human_ms};

/// Names and values of the downtime's parts, in the order in which they pass.
pub(crate) fn downtime_parts(parts: &DowntimeParts) -> [(&'static str, f64); 6] {
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
        ("state load", *state_load),
        ("commit", *commit),
    ]
}

/// Prints the report of a migration that completed.
pub(super) fn print_completed(name: &str, to: &str, report: &Report, output: Output) {
    let Report {
        total_ms,
        downtime_ms,
        downtime,
        setup_ms,
        iterations,
        encodings,
        wire_bytes,
        guest_bytes,
        throttle_max,
        verified,
        forecast_downtime_ms,
        status: _,
        migration_id: _,
        run_state: _,
        error: _,
    } = report;
    output.line(format!("{name} runs at {to}"));
    output.line(format!(
        "  total     {} (setup {})",
        human_ms(*total_ms),
        human_ms(*setup_ms)
    ));
    output.line(format!(
        "  downtime  {} (forecast {})",
        human_ms(*downtime_ms),
        human_ms(*forecast_downtime_ms)
    ));
    for (part, ms) in downtime_parts(downtime) {
        output.line(format!("    {part:10}  {}", human_ms(ms)));
    }
    output.line(format!(
        "  memory    {} of guest, {} on the wire, {} passes",
        human_bytes(*guest_bytes as f64),
        human_bytes(*wire_bytes as f64),
        iterations.len()
    ));
    for (encoding, count) in encodings {
        output.line(format!(
            "    {encoding:10}  {} pages, {}",
            count.pages,
            human_bytes(count.bytes as f64)
        ));
    }
    if *throttle_max > 0 {
        output.line(format!(
            "  throttled to {} % of its CPU at most",
            100 - (*throttle_max).min(100)
        ));
    }
    output.line(format!(
        "  verified  {}",
        if *verified { "yes" } else { "no" }
    ));
}

/// Says why a migration did not complete, and where the guest is.
pub(super) fn print_ended(name: &str, report: &Report) {
    let reason = report.error.as_ref().map(explain);
    match (report.status.as_str(), reason) {
        ("cancelled", None) => eprintln!("vmm: cancelled; {name} runs on here"),
        ("cancelled", Some(reason)) => {
            eprint!("vmm: cancelled; {name} runs on here: {reason}");
        }
        ("handover-unknown", reason) => {
            eprint!(
                "vmm: {}",
                reason.unwrap_or_else(|| "the answer to commit was lost\n".into())
            );
            eprintln!(
                "vmm: {name} is paused: run `vmm migrate {name} --resolve` when its destination can \
                 be reached"
            );
        }
        (_, reason) => {
            eprint!(
                "vmm: {}",
                reason.unwrap_or_else(|| "the migration failed\n".into())
            );
        }
    }
}
