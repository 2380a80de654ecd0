//! The `vmm` command over a VM without a machine; tests of the command line run it.

#![allow(missing_docs, dead_code)]

#[path = "../tests/support/fake.rs"]
mod fake;

fn main() -> std::process::ExitCode {
    vmm::cli::main(&fake::FakeLauncher)
}
