//! Compiles the probe guest (resources/probe) with the same rustc, for the host's target, and tells
//! the crate where it is: `PROBE_GUEST`.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}

fn watch(folder: &Path) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|e| fail(&format!("probe guest sources in {}: {e}", folder.display())));
    for entry in entries.flatten() {
        println!("cargo::rerun-if-changed={}", entry.path().display());
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let source = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../resources/probe");
    watch(&source);
    watch(&source.join("src"));
    let guest = PathBuf::from(variable("OUT_DIR")).join("probe.elf");
    let script = source.join("linker.ld");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args([
            "--edition=2024",
            "--crate-name=probe",
            "--crate-type=bin",
            "--target",
        ])
        .arg(variable("HOST"))
        .args([
            "-Copt-level=2",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ccodegen-units=1",
        ])
        .args([
            "-Crelocation-model=static",
            "-Cforce-unwind-tables=no",
            "-Cdebuginfo=0",
        ])
        .args(["-Clink-args=-nostartfiles -nostdlib -static -no-pie"])
        .args(["-Clink-arg=-Wl,--build-id=none,-z,norelro,-z,max-page-size=4096"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&guest)
        .arg(source.join("src/main.rs"));
    // The guest is the same whatever flags the build around it has.
    rustc
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "compiling the probe guest: rustc ended with {status}"
        )),
        Err(e) => fail(&format!("starting rustc for the probe guest: {e}")),
    }
    println!("cargo::rustc-env=PROBE_GUEST={}", guest.display());
}
