//! Where a host keeps what has to survive its restart: the records of hand-overs, and of disks that are served.
//!
//! Sockets and logs lie in the runtime directory, which for root is on a tmpfs. A record that was lost
//! with it would let a destination say that a guest never ran which did.

use std::path::PathBuf;

use migration::observation::{Observation, Side};

/// Folder of the records, in the state directory.
pub(crate) const MIGRATIONS: &str = "migrations";

/// Folder of the records of disks that are served, in the state directory.
pub(crate) const SERVING: &str = "serving";

/// File in the state directory that limits what this host offers of its CPU.
pub(crate) const HOST_CPU: &str = "host-cpu.toml";

/// The state directory of this user: `$VMM_STATE_DIR`, else the runtime directory if
/// `$VMM_RUNTIME_DIR` names it (it is a host of its own then), else `/var/lib/vmm` for root, else
/// `$XDG_STATE_HOME/vmm`, else `~/.local/state/vmm`; `None` when there is no home either.
pub(crate) fn of_environment() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    choose(set, rustix::process::geteuid().is_root())
        // Fails only without a current directory; what is relative to it is no place then.
        .and_then(|dir| std::path::absolute(dir).ok())
}

fn choose(set: impl Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    set("VMM_STATE_DIR")
        .or_else(|| set("VMM_RUNTIME_DIR"))
        .or_else(|| is_root.then(|| "/var/lib/vmm".into()))
        .or_else(|| set("XDG_STATE_HOME").map(|dir| dir.join("vmm")))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/state/vmm")))
}

/// There is no state directory.
pub(crate) fn missing() -> Observation {
    Observation::new(
        Side::Client,
        "host.state-dir",
        "no place for records that survive a restart: set VMM_STATE_DIR, XDG_STATE_HOME or HOME",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_variable_decides() {
        let all = [
            ("VMM_STATE_DIR", "/state"),
            ("VMM_RUNTIME_DIR", "/runtime"),
            ("XDG_STATE_HOME", "/xdg"),
            ("HOME", "/home/u"),
        ];
        let cases = [
            (0, false, Some("/state")),
            (0, true, Some("/state")),
            (1, true, Some("/runtime")),
            (2, true, Some("/var/lib/vmm")),
            (2, false, Some("/xdg/vmm")),
            (3, false, Some("/home/u/.local/state/vmm")),
            (4, false, None),
            (4, true, Some("/var/lib/vmm")),
        ];
        for (first, is_root, expected) in cases {
            let set = |name: &str| {
                let found = all[first..].iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| PathBuf::from(value))
            };
            assert_eq!(choose(set, is_root), expected.map(PathBuf::from), "{first}");
        }
    }
}
