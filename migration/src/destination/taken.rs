//! How a session at the destination ended: where the guest is then, and what is left to be done.

use crate::error::Error;
use crate::id::MigrationId;
use crate::observation::{Observation, Side};
use crate::outcome::Outcome;
use crate::progress::{Phase, Report};
use crate::steering::Steering;

/// How a session ended.
pub(super) enum Taken {
    /// The guest is here.
    Completed(Box<Report>),
    /// The source only asked.
    Planned,
    /// It failed.
    Failed(Box<Failed>),
}

/// A session that failed.
pub(super) struct Failed {
    pub report: Report,
    pub observation: Observation,
    pub fate: Fate,
    pub aftermath: Aftermath,
}

/// Where the guest is after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It failed before the commit was recorded, and nothing is left of it here.
    AtSource,
    AtSourceByRequest,
    /// It failed after that.
    Unknown,
}

/// What a session that failed leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aftermath {
    /// Nothing: no machine had been built, or whoever may ask about it has asked.
    Nothing,
    /// Its source may not know that the guest never ran here, and will ask.
    InDoubt(MigrationId),
    /// A machine was built in vain, and both sides know.
    BuiltInVain,
    /// Nobody can come in any more.
    Shut,
}

pub(super) fn stopped(error: Error, fate: Fate) -> Taken {
    Taken::Failed(Box::new(Failed {
        report: Report::default(),
        observation: error.observe(Side::Destination),
        fate,
        aftermath: Aftermath::Shut,
    }))
}

pub(super) fn conclude(taken: Taken, steering: &Steering) -> Outcome {
    let outcome = match taken {
        Taken::Completed(mut report) => {
            report.status = "completed".into();
            Outcome::Completed(*report)
        }
        Taken::Planned => Outcome::Planned(Report {
            status: "planned".into(),
            ..Report::default()
        }),
        Taken::Failed(failed) => {
            let Failed {
                mut report,
                observation,
                fate,
                ..
            } = *failed;
            tracing::error!("{observation}");
            report.error = Some(observation);
            let (status, outcome): (_, fn(Report) -> Outcome) = match fate {
                Fate::AtSource => ("failed", Outcome::Failed),
                Fate::AtSourceByRequest => ("cancelled", Outcome::Cancelled),
                Fate::Unknown => ("handover-unknown", Outcome::HandoverUnknown),
            };
            report.status = status.into();
            outcome(report)
        }
    };
    steering.end(&outcome);
    outcome
}

pub(super) fn failure_in(phase: Phase, error: &Error) -> Observation {
    Observation::new(
        Side::Destination,
        "migration.failed",
        format!("migration failed in phase {}", phase.name()),
    )
    .in_phase(phase.name())
    .caused_by(error.observe(Side::Destination))
}
