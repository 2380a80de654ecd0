//! `vmm bench`: a program of its own, so that none of it is in the one that guests face.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use control::exit::local;
use migration::observation::Observation;

use control::output::Output;

/// The program, beside this one.
const PROGRAM: &str = "vmm-bench";

/// Becomes the benchmark, which measures this program.
///
/// # Errors
/// `host.no-bench` where it was not built or installed.
pub(super) fn run(args: Vec<OsString>, output: Output) -> Result<Infallible, Observation> {
    let own = std::env::current_exe()
        .map_err(|e| local("host.no-bench", format!("find this program: {e}")))?;
    let program = own.with_file_name(PROGRAM);
    let mut command = Command::new(&program);
    command.arg("--vmm").arg(&own);
    if output.is_json() {
        command.arg("--json");
    }
    let error = command.args(args).exec();
    let program = program.display();
    Err(local(
        "host.no-bench",
        format!("start {program}, which is built by `cargo build --release -p bench`: {error}"),
    ))
}
