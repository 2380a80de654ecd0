//! The `vmm` binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::target;

/// Names a ready-built binary, so that the test command builds once for all test programs.
pub const BINARY_VARIABLE: &str = "VMM_TEST_BINARY";

/// Path of the `vmm` binary, built from this workspace unless [`BINARY_VARIABLE`] names one.
///
/// cargo gives a test no path to a binary of another package, and a binary that happens to lie beside
/// the test may be older than the sources; so cargo is asked to bring it up to date, once per test
/// program (cargo's own lock keeps programs apart).
///
/// # Errors
/// When the named file does not exist or the build fails.
pub fn vmm() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!(error.clone()))
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{BINARY_VARIABLE} names {}, which is no file",
            path.display()
        );
        return Ok(path);
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "--quiet",
        "--package",
        "vmm",
        "--bin",
        "vmm",
        "--package",
        "bench",
        "--bin",
        "vmm-bench",
        "--target-dir",
    ]);
    build
        .arg(target::target_dir()?)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let profile = target::profile_dir()?;
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let output = build.output().context("start cargo to build vmm")?;
    ensure!(
        output.status.success(),
        "build vmm: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let path = profile.join("vmm");
    ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}
