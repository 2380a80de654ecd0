//! How a migration ended whose events broke off: what its VM says, and when that is gone, its record.

use std::time::Duration;

use control::api::client::Client;
use control::exit::{OUTCOME_UNKNOWN, local};
use control::instance::VmStatus;
use control::runtime_dir::RuntimeDir;
use migration::journal::{FileJournal, Handover, Journal};
use migration::observation::Observation;
use migration::progress::{Event, Report};
use tokio::time::sleep;

use super::progress::Interrupts;

/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The migration in question.
pub(super) struct Asked<'a> {
    pub client: &'a Client,
    /// Its identifier, if the VM told it.
    pub id: Option<String>,
    pub name: &'a str,
    pub to: &'a str,
}

/// What a status says of it.
enum Told {
    Ended(Box<Event>),
    /// It runs, or nobody can say yet.
    NotYet,
    /// The VM knows no more.
    Nothing,
}

impl Asked<'_> {
    /// Asks until it is known how the migration ended, whose events broke off because of `broken`: its
    /// last event.
    ///
    /// # Errors
    /// `broken`, if the guest ended here with its VM; [`OUTCOME_UNKNOWN`] if nobody on this host can
    /// tell, or the user does not want to wait.
    pub async fn learn(
        &self,
        runtime: &RuntimeDir,
        broken: Observation,
        interrupts: &mut Interrupts,
    ) -> Result<Event, Observation> {
        let later = "`vmm status` tells it when the VM answers again";
        loop {
            let told = tokio::select! {
                status = self.client.status() => match status {
                    Ok(status) => self.told_by(status),
                    // It hangs, or its process is about to be gone.
                    Err(why) if why.id == "vm.unreachable" => Told::NotYet,
                    // It has not ended, and so its migration may go on.
                    Err(why) if why.id == "vm.not-responding" => {
                        return Err(self.unknown(later).caused_by(why));
                    }
                    Err(_) => Told::Nothing,
                },
                () = interrupts.next() => return Err(self.unknown(later).caused_by(broken)),
            };
            match told {
                Told::Ended(event) => return Ok(*event),
                Told::NotYet => sleep(ASK_AGAIN).await,
                Told::Nothing => return self.recorded(runtime, broken),
            }
        }
    }

    fn told_by(&self, status: VmStatus) -> Told {
        let Some(migration) = status.migration else {
            return Told::Nothing;
        };
        if self.id.is_some() && migration.id != self.id {
            return Told::Nothing;
        }
        match migration.last {
            Some(end @ (Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_))) => {
                Told::Ended(Box::new(end))
            }
            _ if status.state.is_final() => Told::Nothing,
            _ => Told::NotYet,
        }
    }

    /// What the source's process recorded before it was gone.
    fn recorded(&self, runtime: &RuntimeDir, broken: Observation) -> Result<Event, Observation> {
        let record = || {
            let id = self.id.as_ref()?.parse().ok()?;
            let journal = FileJournal::open(runtime.migrations()?).ok()?;
            journal.recorded(id).ok()?
        };
        match record().map(|record| record.handover) {
            Some(Handover::Gone) => Ok(Event::Completed(Report {
                status: "completed".into(),
                migration_id: self.id.clone().unwrap_or_default(),
                warnings: vec![local(
                    "migration.report-lost",
                    "its VM ended before it told the figures of the migration",
                )],
                ..Report::default()
            })),
            Some(Handover::CommitSent) => {
                let ask = format!("only {} knows whether the guest runs there", self.to);
                Err(self.unknown(&ask).caused_by(broken))
            }
            // Whatever became of the guest, it was not given away.
            Some(Handover::Begun | Handover::Kept) | None => Err(broken),
        }
    }

    fn unknown(&self, ask: &str) -> Observation {
        let name = self.name;
        local(
            OUTCOME_UNKNOWN,
            format!("it is not known how the migration of {name:?} ended: {ask}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use migration::MigrationId;
    use migration::journal::SourceRecord;

    use super::*;

    #[test]
    fn what_the_source_recorded_decides_when_its_process_is_gone() {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path()).unwrap();
        let journal = FileJournal::open(runtime.migrations().unwrap()).unwrap();
        let broken = local("vm.unreachable", "it ended early");
        for (handover, expected) in [
            (None, Err("vm.unreachable")),
            (Some(Handover::Begun), Err("vm.unreachable")),
            (Some(Handover::Kept), Err("vm.unreachable")),
            (Some(Handover::CommitSent), Err(OUTCOME_UNKNOWN)),
            (Some(Handover::Gone), Ok("completed")),
        ] {
            let id = MigrationId::random().unwrap();
            if let Some(handover) = handover {
                let record = SourceRecord {
                    handover,
                    destination: "unix:/there".into(),
                    host: None,
                    overlay: None,
                };
                journal.record(id, &record).unwrap();
            }
            let asked = Asked {
                client: &Client::new(&runtime, "a"),
                id: Some(id.to_string()),
                name: "a",
                to: "unix:/there",
            };
            let said = asked.recorded(&runtime, broken.clone());
            let said = match &said {
                Ok(Event::Completed(report)) => Ok(report.status.as_str()),
                Ok(other) => panic!("{other:?}"),
                Err(why) => Err(why.id.as_str()),
            };
            assert_eq!(said, expected, "{handover:?}");
        }
    }
}
