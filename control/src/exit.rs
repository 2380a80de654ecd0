//! Exit codes, a contract with scripts.

use std::process::ExitCode;

use migration::observation::{Observation, Side};
use migration::progress::Report;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was done.
    Done = 0,
    /// It failed; the guest runs where it ran.
    Failed = 1,
    /// The command line or configuration is wrong.
    Usage = 2,
    /// The guest is paused and needs `migrate --resolve`.
    NeedsResolve = 3,
    /// Cancelled.
    Cancelled = 4,
    /// This host lacks something.
    HostLacks = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// It could not be learnt how a migration ended.
pub const OUTCOME_UNKNOWN: &str = "migration.outcome-unknown";

/// How the process ends after an error, by the area of its id.
pub fn exit_of(observation: &Observation) -> Exit {
    if observation.id == OUTCOME_UNKNOWN {
        return Exit::NeedsResolve;
    }
    match observation.id.split('.').next() {
        Some("usage") => Exit::Usage,
        Some("host") => Exit::HostLacks,
        _ => Exit::Failed,
    }
}

/// How the process ends after a migration.
pub fn exit_of_report(report: &Report) -> Exit {
    match report.status.as_str() {
        "completed" | "planned" => Exit::Done,
        "cancelled" => Exit::Cancelled,
        "handover-unknown" => Exit::NeedsResolve,
        _ => Exit::Failed,
    }
}

/// What this process itself observed.
pub fn local(id: &str, message: impl Into<String>) -> Observation {
    Observation::new(Side::Client, id, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_to_exit_codes() {
        for (id, exit) in [
            ("host.no-kvm", Exit::HostLacks),
            ("host.kvm-denied", Exit::HostLacks),
            ("usage.name", Exit::Usage),
            ("vm.name-in-use", Exit::Failed),
            ("migration.peer-lost", Exit::Failed),
            ("hosts", Exit::Failed),
            (OUTCOME_UNKNOWN, Exit::NeedsResolve),
        ] {
            assert_eq!(exit_of(&local(id, "x")), exit, "{id}");
        }
    }

    #[test]
    fn a_destination_that_lacks_something_is_not_this_host() {
        let refused = local("migration.refused", "refused").caused_by(local("host.no-kvm", "x"));
        assert_eq!(exit_of(&refused), Exit::Failed);
    }

    #[test]
    fn ends_of_migrations_map_to_exit_codes() {
        for (status, exit) in [
            ("completed", Exit::Done),
            ("planned", Exit::Done),
            ("failed", Exit::Failed),
            ("cancelled", Exit::Cancelled),
            ("handover-unknown", Exit::NeedsResolve),
        ] {
            let report = Report {
                status: status.into(),
                ..Report::default()
            };
            assert_eq!(exit_of_report(&report), exit);
        }
    }
}
