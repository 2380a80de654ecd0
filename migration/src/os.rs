//! Conditions that the operating system reports, under names that do not change.

use std::io;
use std::sync::OnceLock;

use crate::observation::{Observation, Side};

static DENIAL: OnceLock<fn() -> Option<String>> = OnceLock::new();

/// Has `explain` asked why something was denied (`EPERM`), by whoever confines this process. Only the
/// first call in a process counts.
pub fn on_denial(explain: fn() -> Option<String>) {
    let _ = DENIAL.set(explain);
}

/// Why the operating system did not permit it, where that is known.
pub(crate) fn explanation(side: Side, error: &io::Error) -> Option<Observation> {
    if error.raw_os_error() != Some(libc::EPERM) {
        return None;
    }
    let why = DENIAL.get()?()?;
    Some(Observation::new(side, "sandbox.refused", why))
}

/// Stable identifier of the condition, where it is one that a user can do something about.
pub fn condition(error: &io::Error) -> Option<&'static str> {
    let id = match error.raw_os_error()? {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => "os.no-space",
        libc::ENOMEM => "os.no-memory",
        libc::EMFILE | libc::ENFILE => "os.no-descriptors",
        libc::EIO => "os.input-output",
        libc::EROFS => "os.read-only",
        libc::EACCES | libc::EPERM => "os.denied",
        libc::ENOENT => "os.not-found",
        libc::ECONNREFUSED => "link.refused",
        libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => "link.unreachable",
        _ => return None,
    };
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the record")]
    struct Outer(#[source] io::Error);

    #[test]
    fn root_of_a_failed_operation_names_the_systems_condition() {
        let full = Outer(io::Error::from_raw_os_error(libc::ENOSPC));
        let seen = Observation::from_error(Side::Source, "migration.journal", &full);
        assert_eq!(seen.id, "migration.journal");
        assert_eq!(seen.root().id, "os.no-space");
    }

    #[test]
    fn condition_without_a_name_keeps_the_operations() {
        let odd = Outer(io::Error::from_raw_os_error(libc::EXDEV));
        let seen = Observation::from_error(Side::Source, "migration.journal", &odd);
        assert_eq!(seen.root().id, "migration.journal");
    }
}
