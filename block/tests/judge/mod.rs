//! QEMU's tools, which judge images that were left behind.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `qemu-img`; `None`, and says so, where there is none.
pub fn qemu_img(args: &[&str]) -> Option<Output> {
    run("qemu-img", args)
}

/// Runs a tool of QEMU's.
pub fn run(tool: &str, args: &[&str]) -> Option<Output> {
    match Command::new(tool).args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {tool}: {error}");
            None
        }
    }
}

/// Runs `qemu-img`, which succeeds.
pub fn must(args: &[&str]) -> Option<()> {
    let output = qemu_img(args)?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "qemu-img {args:?}: {out}{err}");
    Some(())
}

/// The image is whole: no errors, no leaks.
pub fn check(path: &Path) {
    must(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}
