//! A record as the one sector of its file: JSON, filled up with zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{JournalError, failed};

/// Bytes of a record: the least that a disk writes whole.
pub(super) const RECORD: usize = 512;

/// How a record that is there already is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It stands.
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes `value` to `file`, which is locked, unless a record stands and is to be kept; what stands then.
pub(super) fn write<T>(
    file: &File,
    path: &Path,
    value: T,
    standing: Standing,
) -> Result<T, JournalError>
where
    T: Serialize + for<'de> Deserialize<'de>,
{
    if standing == Standing::Keep
        && let Some(stands) = read(file, path)?
    {
        // Whoever wrote it may have been killed before it was durable.
        file.sync_data().map_err(failed("sync", path))?;
        return Ok(stands);
    }
    let mut record = serde_json::to_vec(&value).map_err(|e| failed("write", path)(e.into()))?;
    if record.len() > RECORD {
        return Err(failed("write", path)(io::ErrorKind::FileTooLarge.into()));
    }
    record.resize(RECORD, 0);
    file.write_all_at(&record, 0)
        .and_then(|()| file.sync_data())
        .map_err(failed("write", path))?;
    Ok(value)
}

pub(super) fn read<T: for<'de> Deserialize<'de>>(
    file: &File,
    path: &Path,
) -> Result<Option<T>, JournalError> {
    let mut record = [0; RECORD];
    let mut len = 0;
    while len < RECORD {
        match file.read_at(&mut record[len..], len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", path)(error)),
        }
    }
    let text = record.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(text)
        .map(Some)
        .map_err(|error| failed("read", path)(error.into()))
}
