//! How errors of the runtime directory are told.

use std::path::Path;

use migration::observation::{Observation, Side};

/// What a client of the runtime directory is told.
pub(super) fn failed(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Client, id, message)
}

/// That the kernel refused `what` at `path`.
pub(super) fn io(what: &str, path: &Path, error: &std::io::Error) -> Observation {
    failed(
        "host.runtime-dir",
        format!("{what} {}: {error}", path.display()),
    )
}
