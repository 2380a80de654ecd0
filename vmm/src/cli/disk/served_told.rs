//! What is told of an image that is served.

use std::path::{Path, PathBuf};

use control::units::human_bytes;
use machine::serving::{Progress, Records, ServeError, ServingRecord};
use migration::observation::Observation;
use serde::Serialize;

/// What is told of an image that is served: all of its record but the secret.
#[derive(Debug, Serialize)]
pub(super) struct Told<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<&'static str>,
    image: &'a Path,
    format: &'a str,
    disk: &'a str,
    size: u64,
    migration: &'a str,
    pub(super) listen: &'a str,
    client: Option<&'a str>,
    /// Whether its guest has not gone yet.
    awaiting: bool,
    pub(super) released: bool,
    /// Bytes that the client lacks, as far as it has told.
    missing: u64,
    /// The process that serves it.
    pid: Option<u32>,
    /// Where the record lies, which has the secret for the client.
    pub(super) record: PathBuf,
}

impl<'a> Told<'a> {
    pub(super) fn new(record: &'a ServingRecord, records: &Records, pid: Option<u32>) -> Self {
        let file = format!("{}.json", record.migration);
        let (released, missing) = match record.progress {
            Progress::Awaiting => (false, record.size),
            Progress::Serving { missing } => (false, missing),
            Progress::Released => (true, 0),
        };
        Self {
            event: None,
            image: &record.image,
            format: &record.format,
            disk: &record.disk,
            size: record.size,
            migration: &record.migration,
            listen: &record.listen,
            client: record.client.as_deref(),
            awaiting: record.progress == Progress::Awaiting,
            released,
            missing,
            pid,
            record: records.folder().join(file),
        }
    }

    pub(super) fn line(&self) -> String {
        let state = match (self.released, self.pid) {
            (_, Some(pid)) if self.awaiting => {
                format!("process {pid} waits until its guest has gone")
            }
            (true, _) => "released: its client is whole".to_owned(),
            (false, Some(pid)) => format!("served by process {pid}"),
            (false, None) => "not served now: run the same command again".to_owned(),
        };
        let client = self.client.unwrap_or("a client without a name");
        format!(
            "{}  disk {}  {client} lacks {} of {}  at {}  {state}",
            self.image.display(),
            self.disk,
            human_bytes(self.missing as f64),
            human_bytes(self.size as f64),
            self.listen,
        )
    }
}

pub(super) fn wrong(error: &ServeError) -> Observation {
    error.observe()
}
