//! What is to be served, and its first record.

use std::path::Path;

use block::image::Format;
use block::image::qcow2::BackingRules;

use super::error::ServeError;
use super::record::{ServedWhen, ServingRecord};
use super::records::{Held, Records};

/// What is to be served.
#[derive(Debug)]
pub struct ToServe<'a> {
    /// The image, as an absolute path without links.
    pub image: &'a Path,
    /// Its format.
    pub format: Format,
    /// Where files below it may lie.
    pub rules: &'a BackingRules,
    /// Identity of the disk.
    pub disk: &'a str,
    /// Where it is served.
    pub listen: &'a str,
    /// Who depends on it, for people.
    pub client: Option<&'a str>,
}

/// A record of an image of `size` bytes that is served from `when` on; it is not written yet.
pub(super) fn begin(
    records: &Records,
    what: &ToServe<'_>,
    size: u64,
    when: ServedWhen,
) -> Result<(ServingRecord, Held), ServeError> {
    let record = ServingRecord::new(
        what.image.to_owned(),
        what.format,
        size,
        what.disk.to_owned(),
        what.listen.to_owned(),
        what.client.map(str::to_owned),
    );
    let record = record.map_err(|source| ServeError::Record {
        operation: "draw an identifier for",
        path: records.folder().to_owned(),
        source,
    })?;
    let record = ServingRecord { when, ..record };
    let held = records.hold(&record)?;
    Ok((record, held))
}
