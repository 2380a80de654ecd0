//! The pages agree with the code and with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose errors users see.
const CRATES: [&str; 7] = [
    "bench",
    "block",
    "control",
    "devices",
    "machine",
    "migration",
    "vmm",
];
/// Endings of file names, which look like identifiers.
const FILES: [&str; 6] = [".elf", ".json", ".log", ".qcow2", ".raw", ".sock"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All files with such an ending below `folder`.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in CRATES {
        files(&root().join(name).join("src"), ".rs", &mut found);
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    files(&root().join("docs"), ".md", &mut found);
    found
}

/// What users run of a source file: without comments, and without its tests, which stand at the end.
fn product(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if line == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        if !line.trim_start().starts_with("//") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_tests = path
        .parent()
        .is_some_and(|folder| folder.ends_with("tests"));
    of_tests || name == "tests.rs" || name == "testing.rs" || name.ends_with("_tests.rs")
}

/// Texts between quotes, which may be more than the code has; none that it has is left out as long as
/// no line has an odd number of quotes before it.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_id(text: &str) -> bool {
    let (area, condition) = text.split_once('.').unwrap_or_default();
    area.bytes().all(|b| b.is_ascii_lowercase())
        && is_word(area)
        && is_word(condition)
        && !FILES.iter().any(|ending| text.ends_with(ending))
}

/// Identifiers of observations in the code, each with a file that has it.
fn ids_of_code() -> BTreeMap<String, PathBuf> {
    let mut ids = BTreeMap::new();
    for path in sources() {
        if is_test(&path) {
            continue;
        }
        let product = product(&read(&path));
        for line in product.lines() {
            for text in quoted(line).filter(|text| is_id(text)) {
                ids.insert(text.to_owned(), path.clone());
            }
        }
        // The one helper that is given the condition alone.
        for call in product.split("usage(").skip(1) {
            let first = call.trim_start().strip_prefix('"');
            if let Some((condition, _)) = first.and_then(|rest| rest.split_once('"'))
                && is_word(condition)
            {
                ids.insert(format!("usage.{condition}"), path.clone());
            }
        }
    }
    ids
}

/// Identifiers that the page for operators tells of: its headings of the third level.
fn ids_of_page() -> BTreeSet<String> {
    let page = read(&root().join("docs/troubleshooting.md"));
    let mut ids = BTreeSet::new();
    for heading in page.lines().filter_map(|line| line.strip_prefix("### ")) {
        let id = heading.trim_matches('`');
        assert!(is_id(id), "{heading:?} is no identifier");
        assert!(ids.insert(id.to_owned()), "{id} is told twice");
    }
    ids
}

#[test]
fn every_error_is_told_in_troubleshooting_and_no_other() {
    let code = ids_of_code();
    let page = ids_of_page();
    for known in ["disk.open", "usage.cpu-model", "boot.kernel", "kvm.run"] {
        assert!(code.contains_key(known), "the search is broken: {known}");
    }
    let untold: Vec<_> = code.iter().filter(|(id, _)| !page.contains(*id)).collect();
    assert!(
        untold.is_empty(),
        "docs/troubleshooting.md does not tell of these: {untold:#?}"
    );
    let gone: Vec<_> = page.iter().filter(|id| !code.contains_key(*id)).collect();
    assert!(gone.is_empty(), "no code has these any more: {gone:?}");
}

#[test]
fn identifiers_are_written_out_in_the_code() {
    // Put together from parts, one would escape the search above.
    for path in sources().iter().filter(|path| !is_test(path)) {
        for line in product(&read(path)).lines() {
            let composed = line.contains("format!(\"")
                && quoted(line).any(|text| {
                    let (area, rest) = text.split_once(".{").unwrap_or_default();
                    is_word(area) && !rest.is_empty()
                });
            let known = line.contains("format!(\"usage.{id}\")");
            assert!(!composed || known, "{}: {line}", path.display());
        }
    }
}

/// The anchor that a heading gets where Markdown is shown: lower case, spaces become hyphens, signs go.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    outside_of_code(page)
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

/// Lines that are not in a fenced block.
fn outside_of_code(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for path in pages() {
        let page = read(&path);
        let text = outside_of_code(&page).collect::<Vec<_>>().join("\n");
        for target in text.split("](").skip(1) {
            let Some((target, _)) = target.split_once(')') else {
                continue;
            };
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            let leads =
                there.exists() && (anchor.is_empty() || anchors(&read(&there)).contains(anchor));
            if !leads {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_index() {
    let index = read(&root().join("docs/README.md"));
    for path in pages().iter().skip(1) {
        let name = path.strip_prefix(root().join("docs")).expect("a page");
        let name = name.to_string_lossy();
        assert!(
            name == "README.md" || index.contains(&format!("({name})")),
            "{name} is not in docs/README.md"
        );
    }
}

#[test]
fn source_files_that_pages_name_exist() {
    let mut found = 0;
    for page in pages() {
        let text = read(&page);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_-./".contains(c)));
        let crates = CRATES.map(|name| format!("{name}/"));
        for word in words.map(|word| word.trim_end_matches('.')) {
            if word.contains("/src/") && crates.iter().any(|start| word.starts_with(start)) {
                found += 1;
                let exists = root().join(word).exists();
                assert!(exists, "{} names {word}", page.display());
            }
        }
    }
    assert!(found > 20, "only {found} found");
}

#[test]
fn pages_that_the_code_names_exist() {
    for path in sources() {
        for line in read(&path).lines() {
            for word in line.split(|c: char| !c.is_ascii_alphanumeric() && !"/_-.".contains(c)) {
                let word = word.trim_end_matches('.');
                if word.starts_with("docs/") && word.ends_with(".md") {
                    let told = format!("{} names {word}", path.display());
                    assert!(root().join(word).exists(), "{told}, which does not exist");
                }
            }
        }
    }
}

#[test]
fn the_workflow_runs_the_two_commands_of_the_quick_start_and_no_other() {
    let readme = read(&root().join("README.md"));
    let (_, quick_start) = readme
        .split_once("## Quick start")
        .expect("the quick start");
    let (quick_start, _) = quick_start.split_once("\n## ").expect("what follows it");
    let wanted: Vec<_> = quick_start
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap_or_default().trim())
        .collect();
    let workflow = read(&root().join(".github/workflows/ci.yml"));
    let run: Vec<_> = workflow
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- run: "))
        .filter(|command| !command.starts_with("git config"))
        .collect();
    assert_eq!(run, wanted);
}
