//! The end of a VM's process that does not end by itself.

use std::time::Duration;

use migration::observation::Observation;
use rustix::io::Errno;

use control::exit::local;
use control::runtime_dir::{Entry, RuntimeDir, VmProcess};

/// How long a process that was killed may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// Kills the process that holds `name` and waits until it is gone. Whatever becomes of process ids
/// meanwhile, no other is hit.
///
/// # Errors
/// `vm.process-stuck` when it cannot be killed or is not gone in time.
pub(super) fn kill(name: &str, runtime: &RuntimeDir) -> Result<(), Observation> {
    let Some(pid) = holder(name, runtime) else {
        return Ok(());
    };
    let stuck = |what: String| local("vm.process-stuck", format!("process {pid} {what}"));
    let process = match VmProcess::seen(pid) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(e) => return Err(stuck(format!("cannot be ended: {e}"))),
    };
    // It held the name after it was opened: so it is the one that was opened.
    if holder(name, runtime) != Some(pid) {
        return Ok(());
    }
    process
        .kill()
        .map_err(|e| stuck(format!("cannot be ended: {e}")))?;
    if !process.wait_end(LAST_BREATH) {
        return Err(stuck(
            "was killed and is not gone: it waits in the kernel, as for storage that does not answer, or is \
             frozen, and ends when that does"
                .into(),
        ));
    }
    // The lock on the name goes a moment after the process.
    runtime.wait_gone(name, LAST_BREATH);
    Ok(())
}

fn holder(name: &str, runtime: &RuntimeDir) -> Option<u32> {
    match runtime.find(name) {
        Ok(Entry::Live { pid }) => Some(pid),
        _ => None,
    }
}
