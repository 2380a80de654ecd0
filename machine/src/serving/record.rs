//! What is recorded of a disk that is served, so that the same command goes on after a crash or a reboot.

use std::path::PathBuf;

use block::image::Format;
use migration::{MigrationId, PullSecret};
use serde::{Deserialize, Serialize};

/// How far the client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// The guest that uses the image has not gone yet, as far as is recorded.
    Awaiting,
    /// It depends on the image.
    Serving {
        /// Bytes that it lacks, as far as it has told.
        missing: u64,
    },
    /// It is whole and durable.
    Released,
}

/// From when on a disk is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServedWhen {
    /// At once: nobody uses its image.
    #[default]
    Now,
    /// When the guest that uses the image has gone in a migration, and not at all if that stays.
    GuestHasGone,
}

impl ServedWhen {
    fn is_now(&self) -> bool {
        *self == Self::Now
    }
}

/// A disk that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingRecord {
    /// Version of this form, 1.
    pub version: u32,
    /// What its client names, 32 hexadecimal digits.
    pub migration: String,
    /// What only the client knows beside.
    pub secret: PullSecret,
    /// Identity of the disk.
    pub disk: String,
    /// The image, as an absolute path without links.
    pub image: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Where it is served.
    pub listen: String,
    /// Who depends on it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// From when on.
    #[serde(default, skip_serializing_if = "ServedWhen::is_now")]
    pub when: ServedWhen,
    /// How far that has come.
    pub progress: Progress,
}

/// Version of the form.
pub(super) const VERSION: u32 = 1;

impl ServingRecord {
    /// A record of a disk that nobody has asked for yet, under a fresh identifier and secret.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn new(
        image: PathBuf,
        format: Format,
        size: u64,
        disk: String,
        listen: String,
        client: Option<String>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            version: VERSION,
            migration: MigrationId::random()?.to_string(),
            secret: PullSecret::random()?,
            disk,
            image,
            format: format.name().to_owned(),
            size,
            listen,
            client,
            when: ServedWhen::Now,
            progress: Progress::Serving { missing: size },
        })
    }

    /// Its identifier; `None` where somebody has changed the record.
    pub fn id(&self) -> Option<MigrationId> {
        self.migration.parse().ok()
    }
}
