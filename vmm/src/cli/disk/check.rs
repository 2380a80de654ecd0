//! `vmm disk check`.

use std::path::Path;

use block::image::qcow2::check::{Report, check_file};
use control::exit::Exit;
use control::output::Output;
use migration::observation::Observation;
use serde::Serialize;

use super::args::CheckArgs;
use super::wrong::observed;

/// What is told of a check.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    path: &'a Path,
    whole: bool,
    errors: u64,
    leaks: u64,
    /// It was not closed: who uses it next makes its reference counts anew.
    dirty: bool,
    allocated_clusters: u64,
    compressed_clusters: u64,
    total_clusters: u64,
    findings: &'a [String],
}

pub(super) fn run(args: &CheckArgs, output: Output) -> Result<Exit, Observation> {
    let (report, header) = check_file(&args.path).map_err(|e| observed(&e))?;
    let Report {
        errors,
        leaks,
        allocated,
        compressed,
        clusters,
        findings,
    } = report;
    let checked = Checked {
        path: &args.path,
        whole: errors == 0 && leaks == 0,
        errors,
        leaks,
        dirty: header.is_dirty(),
        allocated_clusters: allocated,
        compressed_clusters: compressed,
        total_clusters: clusters,
        findings: &findings,
    };
    output.either(&checked, lines(&checked));
    Ok(if checked.whole {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn lines(checked: &Checked<'_>) -> String {
    let mut lines: Vec<String> = checked.findings.to_vec();
    let found = checked.errors + checked.leaks;
    let more = found.saturating_sub(lines.len() as u64);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.push(match (checked.errors, checked.leaks) {
        (0, 0) => "whole: no errors, nothing leaked".into(),
        (0, leaks) => format!(
            "{leaks} clusters leaked: only space is lost; `qemu-img check -r leaks` gives it back"
        ),
        (errors, leaks) => format!(
            "{errors} errors, {leaks} clusters leaked: do not write to it; `qemu-img check -r all` repairs what can be repaired"
        ),
    });
    if checked.dirty {
        lines
            .push("it was not closed: whoever uses it next makes its reference counts anew".into());
    }
    lines.push(format!(
        "{} of {} clusters are allocated, {} of them compressed",
        checked.allocated_clusters, checked.total_clusters, checked.compressed_clusters
    ));
    lines.join("\n")
}
