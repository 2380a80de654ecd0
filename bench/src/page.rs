//! The page of a recorded run: tables between two marks of a Markdown file, and beside it pictures and
//! all figures as JSON.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::chart;
use super::error::BenchError;
use super::report;
use super::summary::Summary;

/// What stands between these is replaced; all else in the file stays.
const BEGIN: &str = "<!-- recorded run: begin -->";
const END: &str = "<!-- recorded run: end -->";

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
    let mut pictures = Vec::new();
    for figures in &summary.scenarios {
        let name = format!("{stem}-{}.svg", figures.name);
        let svg = chart::svg(figures, &report::title(figures, summary.runs));
        replace(&path.with_file_name(&name), &svg).map_err(failed)?;
        pictures.push(name);
    }
    let json = serde_json::to_string_pretty(summary).map_err(|e| failed(e.into()))?;
    let figures = format!("{stem}.json");
    replace(&path.with_file_name(&figures), &format!("{json}\n")).map_err(failed)?;
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => "# Benchmarks\n".to_owned(),
        Err(e) => return Err(failed(e)),
    };
    let text = with_record(&old, &record(summary, &pictures, &figures));
    replace(path, &text).map_err(failed)
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
fn with_record(page: &str, record: &str) -> String {
    let marked = format!("{BEGIN}\n{record}{END}");
    let place = page.find(BEGIN).and_then(|begin| {
        let end = page[begin..].find(END)? + begin + END.len();
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

#[cfg(test)]
mod tests {
    use super::super::options::BenchOptions;
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let once = with_record("# Page\n\ntext\n", "first\n");
        assert_eq!(once, format!("# Page\n\ntext\n\n{BEGIN}\nfirst\n{END}\n"));
        let more = format!("{once}\nafter\n");
        let twice = with_record(&more, "second\n");
        assert_eq!(twice, more.replace("first", "second"));
        // A mark without its end is text like any other.
        assert!(with_record(&format!("{BEGIN}\nx"), "y\n").contains("x\n\n"));
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
