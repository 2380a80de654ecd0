//! Conditions that the operating system reports, under names that do not change.

use std::io;
use std::sync::OnceLock;

static DENIAL: OnceLock<fn() -> Option<String>> = OnceLock::new();

/// Has `explain` asked why something was denied (`EPERM`), by whoever confines this process. Only the
/// first call in a process counts.
pub fn on_denial(explain: fn() -> Option<String>) {
    let _ = DENIAL.set(explain);
}

/// Why the operating system did not permit it, where that is known.
pub(crate) fn explanation(error: &io::Error) -> Option<String> {
    if error.raw_os_error() != Some(libc::EPERM) {
        return None;
    }
    DENIAL.get()?()
}

/// The system cannot start a thread: it has no memory for it, or allows no more of them.
#[derive(Debug, thiserror::Error)]
#[error("the system has no memory or no room for another thread: {0}")]
struct NoThread(io::Error);

/// Says of an error that it came of the start of a thread, where the system's own words (try again)
/// say nothing.
pub fn no_thread(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NoThread(error))
}

/// Whether a connection was not taken in for want of something that others may give back.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EINTR)
    )
}

/// Stable identifier of the condition, where it is one that a user can do something about.
pub fn condition(error: &io::Error) -> Option<&'static str> {
    let inner = error.get_ref();
    if inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<NoThread>) {
        return Some("os.no-threads");
    }
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
    use crate::observation::{Observation, Side};

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
    fn thread_that_cannot_be_started_is_told_apart_from_trying_again() {
        let again = || io::Error::from_raw_os_error(libc::EAGAIN);
        assert_eq!(condition(&again()), None);
        assert_eq!(condition(&no_thread(again())), Some("os.no-threads"));
    }

    #[test]
    fn condition_without_a_name_keeps_the_operations() {
        let odd = Outer(io::Error::from_raw_os_error(libc::EXDEV));
        let seen = Observation::from_error(Side::Source, "migration.journal", &odd);
        assert_eq!(seen.root().id, "migration.journal");
    }
}
