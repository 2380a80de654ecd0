//! What can go wrong with a record, told by what was done to which file.

use std::io;
use std::path::Path;

/// A record that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct JournalError {
    /// What failed.
    pub operation: &'static str,
    /// On which file.
    pub path: String,
    /// Why.
    pub source: io::Error,
}

pub(super) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.display().to_string();
    move |source| JournalError {
        operation,
        path,
        source,
    }
}
