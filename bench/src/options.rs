//! What is measured and how: the options, whoever gives them.

use std::path::PathBuf;

use migration::source::default_streams;

use super::error::BenchError;
use super::qemu::QemuPath;
use super::scenario::Scenario;

/// How the figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables, each as soon as it is measured.
    Table,
    /// One JSON object on one line, at the end.
    Json,
}

/// What is measured and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Runs of each measurement, of which the median counts; 1 to 1000.
    pub runs: u32,
    /// Bytes of data in the large guests; whole mebibytes, at least two.
    pub memory_bytes: u64,
    /// Connections of this engine and of the plain copy, 1 to 16; `None` is what the engine
    /// chooses.
    pub streams: Option<u8>,
    /// Milliseconds for which requests of disks are counted, after as many to warm up.
    pub interval_ms: u64,
    /// How the figures are printed.
    pub format: Format,
    /// What is measured.
    pub scenarios: Vec<Scenario>,
    /// QEMUs to compare with beside those that are found; `None` is without any.
    pub qemu: Option<Vec<QemuPath>>,
    /// The folder that images of disks lie in; `None` is that of temporary files.
    pub images: Option<PathBuf>,
    /// A Markdown page that the figures are recorded in, with pictures beside it.
    pub page: Option<PathBuf>,
    /// The `vmm` to measure; `None` is the one beside this program.
    pub program: Option<PathBuf>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            runs: 5,
            memory_bytes: 1 << 30,
            streams: None,
            interval_ms: 1000,
            format: Format::Table,
            scenarios: Scenario::ALL.to_vec(),
            qemu: Some(Vec::new()),
            images: None,
            page: None,
            program: None,
        }
    }
}

impl BenchOptions {
    /// Refuses what is out of its range.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        let wrong = |name, range, value: String| Err(BenchError::Option { name, range, value });
        if !(1..=1000).contains(&self.runs) {
            return wrong("--runs", "1 to 1000", self.runs.to_string());
        }
        if let Some(streams) = self.streams.filter(|streams| !(1..=16).contains(streams)) {
            return wrong("--streams", "1 to 16", streams.to_string());
        }
        let bytes = self.memory_bytes;
        if !bytes.is_multiple_of(1 << 20) || !(2 << 20..=1 << 40).contains(&bytes) {
            return wrong(
                "--memory",
                "whole MiB from 2MiB to 1TiB",
                format!("{bytes} bytes"),
            );
        }
        Ok(())
    }

    /// Connections of the plain copy: as many as the engine has.
    pub(super) fn limit_streams(&self) -> u8 {
        self.streams.unwrap_or_else(default_streams)
    }
}
