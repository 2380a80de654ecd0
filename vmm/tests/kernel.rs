//! Kernels that this host cannot run, by the real binary.

#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The stock kernel that the tests' set-up script has put beside what cargo builds.
fn stock_kernel() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_BIN_EXE_vmm"));
    // TARGET/PROFILE/vmm
    let target = built.parent()?.parent()?;
    let boot = std::fs::read_dir(target.join("rig/kernel/boot")).ok()?;
    boot.filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
}

#[test]
fn a_stock_kernel_on_kvm_pvm_ends_in_one_clear_sentence() {
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: this host has no /dev/kvm");
        return;
    }
    if !Path::new("/sys/module/kvm_pvm").is_dir() {
        println!("skipped: this host's KVM runs stock kernels");
        return;
    }
    let Some(kernel) = stock_kernel() else {
        println!("skipped: no stock kernel here: run tests/setup.sh");
        return;
    };
    let runtime = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["run", "stock", "--memory", "512MiB", "--kernel"])
        .arg(&kernel)
        .env("VMM_RUNTIME_DIR", runtime.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    for part in ["kvm_pvm", "cmpxchg16b", "kvm_amd", "kvm_intel"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    let folder = runtime.path().join("stock");
    assert!(!folder.exists(), "{} is left behind", folder.display());
}
