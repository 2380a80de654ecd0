//! What initramfs archives of both levels are made of.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::modules::Modules;
use super::rig::{find_program, shared_libraries};

/// Puts busybox and the first device nodes into `archive`.
///
/// # Errors
/// When busybox is missing or not static.
pub fn add_busybox(archive: &mut Archive) -> Result<()> {
    archive
        .character_device("dev/console", 5, 1)
        .character_device("dev/null", 1, 3);
    for directory in ["bin", "proc", "sys", "tmp", "root"] {
        archive.directory(directory);
    }
    archive
        .file("bin/busybox", 0o755, &busybox()?)
        .symlink("bin/sh", "busybox");
    Ok(())
}

/// The static busybox of this machine.
///
/// # Errors
/// When it is missing or needs libraries.
pub fn busybox() -> Result<Vec<u8>> {
    let path = find_program("busybox")?;
    ensure!(
        shared_libraries(&path)?.is_empty(),
        "{} is not static: install busybox-static",
        path.display()
    );
    read(&path)
}

/// Puts the named kernel modules, those they need and their order into `/modules`.
///
/// # Errors
/// When a module is missing.
pub fn add_modules(archive: &mut Archive, modules: &Modules, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules.in_load_order(names)? {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.image);
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// Puts a program of this machine into `/usr/bin` under `name`, with what it is linked with.
///
/// # Errors
/// When the program or a library cannot be read.
pub fn add_program(archive: &mut Archive, name: &str, program: &Path) -> Result<()> {
    // Two programs share most of the libraries; the later copy of a file replaces the earlier.
    for (path, content) in program_files(&format!("usr/bin/{name}"), program)? {
        archive.file(&path, 0o755, &content);
    }
    Ok(())
}

/// A program of this machine, its debug information stripped, for the path `to`; and the shared
/// libraries that it is linked with for the paths where it looks for them.
///
/// # Errors
/// When the program or a library cannot be read.
pub fn program_files(to: &str, program: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![(to.to_owned(), stripped(program)?)];
    for library in shared_libraries(program)? {
        let path = library.to_string_lossy().trim_start_matches('/').to_owned();
        files.push((path, read(&library)?));
    }
    Ok(files)
}

/// A development build is mostly debug information, which would fill the memory of level 1.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = tempfile::NamedTempFile::new().context("make a temporary file")?;
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-debug")
        .arg("-o")
        .arg(copy.path())
        .arg(program);
    match strip.status() {
        Ok(status) if status.success() => read(copy.path()),
        _ => read(program),
    }
}

/// Builds the program that ends the emulator from its assembly source.
///
/// # Errors
/// When the C compiler, which every Rust toolchain needs for linking, cannot assemble it.
pub fn exit_program() -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().context("make a temporary directory")?;
    let (source, program) = (dir.path().join("exit.s"), dir.path().join("exit-emulator"));
    std::fs::write(&source, include_str!("guest/exit.s")).context("write exit.s")?;
    let output = Command::new("cc")
        .args(["-static", "-nostdlib", "-o"])
        .args([&program, &source])
        .output()
        .context("start cc")?;
    ensure!(
        output.status.success(),
        "assemble exit.s:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    read(&program)
}

/// Reads a file, naming it in the error.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_program_needs_no_libraries_and_says_when_it_has_no_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit-emulator");
        std::fs::write(&path, exit_program().unwrap()).unwrap();
        assert!(shared_libraries(&path).unwrap().is_empty());
    }
}
