//! The files of a crate and their imports, and the circles in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use super::source::product;
use super::tree::{Import, imports};

/// Where a file stands in the tree of modules; empty for `lib.rs`.
type Module = Vec<String>;

/// The imports between the files of one crate.
#[derive(Debug)]
pub struct Imports {
    files: BTreeMap<Module, File>,
}

#[derive(Debug)]
struct File {
    imports: Vec<Import>,
    /// All but the `use` lines.
    rest: String,
}

impl Imports {
    /// Reads the files below `src`.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(src: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![src.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries =
                std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
            for entry in entries {
                let path = entry.context("read a folder")?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(module) = module(src, &path) {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("read {}", path.display()))?;
                    files.insert(module, File::new(&text));
                }
            }
        }
        Ok(Self { files })
    }

    /// Number of files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Files that import each other in a circle, each circle by lines of `FILE imports FILE`.
    #[must_use]
    pub fn circles(&self) -> Vec<Vec<String>> {
        let edges: BTreeMap<_, _> = self
            .files
            .iter()
            .map(|(module, file)| (module, self.imported(module, file)))
            .collect();
        let reached: BTreeMap<_, _> = edges
            .keys()
            .map(|module| (*module, reach(&edges, module)))
            .collect();
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for (module, from) in &reached {
            let circle: BTreeSet<_> = from
                .iter()
                .filter(|other| reached[*other].contains(*module))
                .copied()
                .collect();
            if circle.is_empty() || !seen.insert(circle.clone()) {
                continue;
            }
            let lines = circle.iter().flat_map(|from| {
                let to = edges[from].iter().filter(|to| circle.contains(*to));
                to.map(|to| format!("{} imports {}", name(from), name(to)))
            });
            circles.push(lines.collect());
        }
        circles
    }

    /// The files that define what a file imports.
    fn imported<'a>(&'a self, module: &Module, file: &File) -> BTreeSet<&'a Module> {
        let mut paths: Vec<Vec<String>> = file.imports.iter().map(|it| it.path.clone()).collect();
        for path in paths_in(&file.rest) {
            let import = file.imports.iter().find(|import| import.name == path[0]);
            match import {
                Some(import) => paths.push([&import.path[..], &path[1..]].concat()),
                None => paths.push(path),
            }
        }
        let defining = paths
            .iter()
            .filter_map(|path| self.defining(module, path, &mut BTreeSet::new()));
        defining.filter(|found| *found != module).collect()
    }

    /// The file that defines what `path` names in `module`; `None` outside of this crate.
    fn defining<'a>(
        &'a self,
        module: &Module,
        path: &[String],
        followed: &mut BTreeSet<(Module, String)>,
    ) -> Option<&'a Module> {
        let mut at = module.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            child => {
                let inner = [&at[..], &[child.to_owned()]].concat();
                self.files.get(&inner)?;
            }
        }
        while let Some(part) = rest.first() {
            let inner = [&at[..], std::slice::from_ref(part)].concat();
            if !self.files.contains_key(&inner) {
                break;
            }
            at = inner;
            rest = &rest[1..];
        }
        let (found, file) = self.files.get_key_value(&at)?;
        if let Some(item) = rest.first().filter(|item| *item != "*")
            && followed.insert((at.clone(), item.clone()))
        {
            let passed_on = file.imports.iter().filter(|import| import.name == *item);
            for import in passed_on {
                if let Some(origin) = self.defining(&at, &import.path, followed) {
                    return Some(origin);
                }
            }
        }
        Some(found)
    }
}

impl File {
    fn new(text: &str) -> Self {
        let (imports, rest) = imports(&product(text));
        Self { imports, rest }
    }
}

/// The module that a file is; `None` for what is no source of the product.
fn module(src: &Path, path: &Path) -> Option<Module> {
    let inner = path.strip_prefix(src).ok()?.to_str()?.strip_suffix(".rs")?;
    let mut module: Module = inner.split('/').map(str::to_owned).collect();
    let is_test = |part: &String| part == "tests" || part == "testing" || part.ends_with("_tests");
    if module.iter().any(is_test) {
        return None;
    }
    match inner {
        "lib" => module.clear(),
        // Another crate, with the same modules below.
        "main" => return None,
        _ if module.last().is_some_and(|last| last == "mod") => drop(module.pop()),
        _ => {}
    }
    Some(module)
}

/// All files that are reached from `start` by imports.
fn reach<'a>(
    edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
    start: &'a Module,
) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<_> = edges[start].iter().copied().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(&edges[module]);
        }
    }
    reached
}

/// Paths of at least two parts that stand in code.
fn paths_in(text: &str) -> Vec<Vec<String>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text
        .split(|c| !is_part(c))
        .filter(|word| word.contains("::"));
    let paths = words.map(|word| {
        let parts = word.split("::").filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    });
    paths.filter(|path| !path.is_empty()).collect()
}

fn name(module: &Module) -> String {
    if module.is_empty() {
        "lib".to_owned()
    } else {
        module.join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let read = Imports::read(folder.path()).unwrap();
        assert_eq!(read.len(), files.len());
        read.circles()
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "pub struct B; fn f() { let _ = super::a::A; }"),
            ("c.rs", "use crate::a::A;"),
        ]);
        assert_eq!(found, [["a imports b", "b imports a"]]);
    }

    #[test]
    fn a_child_that_needs_its_parent_is_one_only_where_the_parent_needs_it() {
        let lib = ("lib.rs", "mod room;");
        let child = (
            "room/child.rs",
            "use super::Thing; pub struct Child(Thing);",
        );
        let needed = "mod child; use child::Child; pub struct Thing; fn f(_: Child) {}";
        assert_eq!(circles(&[lib, ("room/mod.rs", needed), child]).len(), 1);
        let declared = "mod child; pub struct Thing;";
        assert!(circles(&[lib, ("room/mod.rs", declared), child]).is_empty());
    }

    #[test]
    fn what_is_passed_on_is_of_the_file_that_defines_it() {
        let found = circles(&[
            ("lib.rs", "mod room;"),
            ("room.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
            ("room/a.rs", "pub struct A;"),
            ("room/b.rs", "use super::A; pub struct B(A);"),
        ]);
        assert_eq!(found, [[""; 0]; 0]);
    }
}
