//! The page of a recorded run: tables between two marks of a Markdown file, and beside it pictures and
//! all figures as JSON.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::chart;
use super::disk_iops::DiskIopsFigures;
use super::disk_tracking::TrackingFigures;
use super::error::BenchError;
use super::report;
use super::summary::Summary;
use super::table::Table;

/// What stands between these is replaced; all else in the file stays.
#[derive(Clone, Copy)]
struct Marks {
    begin: &'static str,
    end: &'static str,
}

const RUN: Marks = Marks {
    begin: "<!-- recorded run: begin -->",
    end: "<!-- recorded run: end -->",
};
/// Of disks, which are recorded by themselves: they are often measured alone.
const DISKS: Marks = Marks {
    begin: "<!-- recorded disks: begin -->",
    end: "<!-- recorded disks: end -->",
};

/// Of disks that move and are tracked.
const DISK_MOVES: Marks = Marks {
    begin: "<!-- recorded disk moves: begin -->",
    end: "<!-- recorded disk moves: end -->",
};

/// What of a run is recorded together, and replaces what was.
struct Parts {
    /// Moves of memory, and starts.
    run: Option<Summary>,
    /// Requests of disks.
    disks: Option<Summary>,
    /// Disks that move, and what tracking costs.
    disk_moves: Option<Summary>,
}

/// Makes sure that a page can be written before anything is measured for it.
///
/// # Errors
/// When it is no file that could be replaced.
pub(super) fn check(path: &Path) -> Result<(), BenchError> {
    let failed = |e| BenchError::Page(path.to_owned(), e);
    if path.is_dir() {
        return Err(failed(ErrorKind::IsADirectory.into()));
    }
    let probe = draft(path);
    fs::File::create_new(&probe)
        .and_then(|_| fs::remove_file(&probe))
        .map_err(failed)
}

/// Where a file is written before it takes the place of the one at `path`: a name that is ours alone.
fn draft(path: &Path) -> PathBuf {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".new-{}", std::process::id()));
    draft.into()
}

/// Writes the figures to the page at `path`, and beside it a picture of each scenario and the JSON.
///
/// # Errors
/// When a file cannot be read or written. The page is replaced as a whole or not at all.
pub(super) fn write(path: &Path, summary: &Summary) -> Result<(), BenchError> {
    let failed = |e| BenchError::Page(path.to_owned(), e);
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .ok_or_else(|| failed(ErrorKind::InvalidFilename.into()))?;
    let mut text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => "# Benchmarks\n".to_owned(),
        Err(e) => return Err(failed(e)),
    };
    let beside = |name: &str, text: &str| replace(&path.with_file_name(name), text).map_err(failed);
    let json = |of: &Summary| match serde_json::to_string_pretty(of) {
        Ok(json) => Ok(format!("{json}\n")),
        Err(e) => Err(failed(e.into())),
    };
    let Parts {
        run,
        disks,
        disk_moves,
    } = parts(summary);
    if let Some(run) = run {
        let mut pictures = Vec::new();
        for figures in &run.scenarios {
            let name = format!("{stem}-{}.svg", figures.name);
            let svg = chart::svg(figures, &report::title(figures, run.runs));
            beside(&name, &svg)?;
            pictures.push(name);
        }
        let figures = format!("{stem}.json");
        beside(&figures, &json(&run)?)?;
        text = with_record(&text, RUN, &record(&run, &pictures, &figures));
    }
    if let Some(disks) = disks {
        let figures = format!("{stem}-disks.json");
        beside(&figures, &json(&disks)?)?;
        let tables = disks.disk_iops.iter().map(|figures| Section {
            head: format!("{} {}", DiskIopsFigures::NAME, figures.format),
            title: figures.title(disks.runs),
            table: figures.table(),
            notes: figures.left_out(),
        });
        text = with_record(
            &text,
            DISKS,
            &record_disks(&disks, "disks", tables, &figures),
        );
    }
    if let Some(moves) = disk_moves {
        let figures = format!("{stem}-disk-moves.json");
        beside(&figures, &json(&moves)?)?;
        let tracking = moves.disk_tracking.iter().map(|figures| Section {
            head: TrackingFigures::NAME.to_owned(),
            title: figures.title(),
            table: figures.table(),
            notes: Vec::new(),
        });
        let tables = moves.disk_moves.iter().map(|figures| Section {
            head: figures.name.to_owned(),
            title: figures.title(moves.runs),
            table: figures.table(),
            notes: figures.left_out(),
        });
        let tables = tables.chain(tracking);
        let record = record_disks(&moves, "disks that move", tables, &figures);
        text = with_record(&text, DISK_MOVES, &record);
    }
    replace(path, &text).map_err(failed)
}

/// A run of some of it alone replaces nothing else.
fn parts(summary: &Summary) -> Parts {
    let of = |wanted: fn(&str) -> bool| {
        let goals = summary.goals.iter().filter(|goal| wanted(goal.scenario));
        Summary {
            scenarios: Vec::new(),
            start: None,
            disk_iops: Vec::new(),
            disk_tracking: None,
            disk_moves: Vec::new(),
            goals: goals.cloned().collect(),
            ..summary.clone()
        }
    };
    let is_iops = |scenario: &str| scenario.starts_with(DiskIopsFigures::NAME);
    let disks = (!summary.disk_iops.is_empty()).then(|| Summary {
        disk_iops: summary.disk_iops.clone(),
        ..of(is_iops)
    });
    let moves = !summary.disk_moves.is_empty() || summary.disk_tracking.is_some();
    let disk_moves = moves.then(|| Summary {
        disk_moves: summary.disk_moves.clone(),
        disk_tracking: summary.disk_tracking.clone(),
        ..of(|scenario| {
            scenario.starts_with("disk-") && !scenario.starts_with(DiskIopsFigures::NAME)
        })
    });
    let alone = (disks.is_some() || disk_moves.is_some())
        && summary.scenarios.is_empty()
        && summary.start.is_none();
    let run = (!alone).then(|| Summary {
        scenarios: summary.scenarios.clone(),
        start: summary.start.clone(),
        ..of(|scenario| !scenario.starts_with("disk-"))
    });
    Parts {
        run,
        disks,
        disk_moves,
    }
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = draft(path);
    let mut file = fs::File::create_new(&new)?;
    file.write_all(text.as_bytes())
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| {
            // The error that matters is the one before.
            let _ = fs::remove_file(&new);
        })
}

/// The page with `record` between its marks, which are put at its end where it has none.
fn with_record(page: &str, Marks { begin, end }: Marks, record: &str) -> String {
    let marked = format!("{begin}\n{record}{end}");
    let place = page.find(begin).and_then(|begin| {
        let end = page[begin..].find(end)? + begin + end.len();
        Some(begin..end)
    });
    match place {
        Some(place) => format!("{}{marked}{}", &page[..place.start], &page[place.end..]),
        None => format!("{}\n\n{marked}\n", page.trim_end()),
    }
}

/// The recorded run as Markdown.
fn record(summary: &Summary, pictures: &[String], figures: &str) -> String {
    let mut text = format!(
        "```\n{}```\n\nAll values: [{figures}]({figures}).\n",
        summary.heading()
    );
    for (figures, picture) in summary.scenarios.iter().zip(pictures) {
        text += &format!(
            "\n### {}\n{}\n\n![{1}]({picture})\n\n{}",
            figures.name,
            report::title(figures, summary.runs),
            report::contenders(figures).markdown()
        );
        for contender in &figures.contenders {
            if let Some(why) = &contender.gave_up {
                text += &format!("\n{} was left out: {why}\n", contender.name);
            }
        }
        if let Some(engine) = figures.engine().and_then(|vmm| vmm.engine.as_ref()) {
            text += &format!(
                "\nvmm by its own report:\n\n{}",
                report::engine(engine).markdown()
            );
        }
    }
    if let Some(start) = &summary.start {
        text += &format!("\n### start\n{}", start.table().markdown());
    }
    text += &format!("\n### goals\n{}", report::goals(&summary.goals).markdown());
    text
}

/// A table of disks in the record.
struct Section {
    head: String,
    title: String,
    table: Table,
    notes: Vec<String>,
}

/// Tables of disks, called `what`, as Markdown.
fn record_disks(
    summary: &Summary,
    what: &str,
    sections: impl Iterator<Item = Section>,
    figures: &str,
) -> String {
    let mut text = format!(
        "```\n{}```\n\nAll values: [{figures}]({figures}).\n",
        summary.heading()
    );
    for Section {
        head,
        title,
        table,
        notes,
    } in sections
    {
        text += &format!("\n### {head}\n{title}\n\n{}", table.markdown());
        for note in notes {
            text += &format!("\n{note}\n");
        }
    }
    text + &format!(
        "\n### goals of {what}\n{}",
        report::goals(&summary.goals).markdown()
    )
}

#[cfg(test)]
mod tests {
    use super::super::goal::{Bound, Goal};
    use super::super::options::BenchOptions;
    use super::super::unit::Unit;
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let Marks { begin, end } = RUN;
        let once = with_record("# Page\n\ntext\n", RUN, "first\n");
        assert_eq!(once, format!("# Page\n\ntext\n\n{begin}\nfirst\n{end}\n"));
        let more = format!("{once}\nafter\n");
        let twice = with_record(&more, RUN, "second\n");
        assert_eq!(twice, more.replace("first", "second"));
        // A mark without its end is text like any other.
        assert!(with_record(&format!("{begin}\nx"), RUN, "y\n").contains("x\n\n"));
    }

    #[test]
    fn disks_that_are_measured_alone_leave_the_rest_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("figures.md");
        let nothing = Summary::new(&BenchOptions::default());
        write(&page, &nothing).unwrap();
        let before = fs::read_to_string(&page).unwrap();
        let json = fs::read_to_string(dir.path().join("figures.json")).unwrap();
        let disks = Summary {
            disk_iops: vec![DiskIopsFigures {
                format: "raw",
                disk_bytes: 1 << 28,
                request_bytes: 4096,
                cells: Vec::new(),
            }],
            ..nothing.clone()
        };
        for _ in 0..2 {
            write(&page, &disks).unwrap();
            let after = fs::read_to_string(&page).unwrap();
            assert!(after.starts_with(before.trim_end()), "{after}");
            assert_eq!(after.matches("### disk-iops raw").count(), 1, "{after}");
        }
        let goal = |scenario| Goal::new(scenario, "x", 1.0, Bound::AtMost, 1.0, Unit::Ratio);
        let tracking = TrackingFigures::new(4096, 1, &[(1.0, 1.0), (1.0, 1.1)]).unwrap();
        let others = Summary {
            disk_tracking: Some(tracking),
            goals: vec![goal("disk-tracking"), goal("disk-iops-qcow2"), goal("idle")],
            ..nothing.clone()
        };
        write(&page, &others).unwrap();
        let after = fs::read_to_string(&page).unwrap();
        assert_eq!(after.matches("### disk-iops raw").count(), 1, "{after}");
        assert!(after.contains("### goals of disks that move"), "{after}");
        assert!(after.contains("| disk-tracking x |") && !after.contains("| idle x |"));
        assert!(!after.contains("| disk-iops-qcow2 x |"), "{after}");
        let unchanged = fs::read_to_string(dir.path().join("figures.json")).unwrap();
        assert_eq!(unchanged, json);
        let text = fs::read_to_string(dir.path().join("figures-disks.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["disk_iops"][0]["format"], "raw");
    }

    #[test]
    fn a_page_is_made_where_there_is_none_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("figures.md");
        let summary = Summary::new(&BenchOptions::default());
        write(&page, &summary).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("# Benchmarks\n") && text.contains(&summary.host.cpu_model));
        let json = fs::read_to_string(dir.path().join("figures.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["version"], summary.version);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        check(&page).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        for wrong in [dir.path(), &dir.path().join("no/such/page.md")] {
            assert!(check(wrong).is_err() && write(wrong, &summary).is_err());
        }
    }
}
