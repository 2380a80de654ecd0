//! No files of a crate import each other in a circle: each can be read with what it stands on alone.

use std::path::{Path, PathBuf};

use tests::imports::Imports;

/// Folders of all crates of the workspace.
fn crates(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).unwrap().map(Result::unwrap);
    let folders = entries.map(|entry| entry.path());
    folders
        .filter(|folder| folder.join("Cargo.toml").is_file())
        .collect()
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = String::new();
    let crates = crates(&root);
    assert!(crates.len() >= 9, "only {crates:?}");
    for folder in crates {
        let name = folder.display();
        let imports = Imports::read(&folder.join("src")).unwrap();
        assert!(imports.len() > 5, "only {} files of {name}", imports.len());
        for circle in imports.circles() {
            found += &format!("{name}:\n  {}\n", circle.join("\n  "));
        }
    }
    assert!(found.is_empty(), "{found}");
}
