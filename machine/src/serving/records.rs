//! The records of disks that are served: one file each, with a lock that whoever serves the disk holds.
//!
//! ```text
//! serving/ID.json     the record, replaced as a whole; mode 0600, as it has the secret
//! serving/ID.lock     locked (flock) by the process that serves the disk, names it
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use migration::MigrationId;
use rustix::fs::{FlockOperation, flock};

use super::error::ServeError;
use super::record::{ServingRecord, VERSION};

/// Longest record.
const LONGEST: u64 = 64 << 10;

fn failed<'p>(
    operation: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> ServeError + 'p {
    move |source| ServeError::Record {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// The folder of them.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
}

/// A record, and who serves its disk.
#[derive(Debug)]
pub struct Listed {
    /// What is recorded.
    pub record: ServingRecord,
    /// The process that serves it.
    pub pid: Option<u32>,
}

/// A record that this process alone changes, as long as it has this.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Records {
    /// Those in `folder`, which is there.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, id: MigrationId, ending: &str) -> PathBuf {
        self.folder.join(format!("{id}.{ending}"))
    }

    /// All records, by their images; what cannot be read is told and left out.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, ServeError> {
        let entries = fs::read_dir(&self.folder).map_err(failed("list", &self.folder))?;
        let mut listed = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => {
                    let lock = path.with_extension("lock");
                    listed.push(Listed {
                        record,
                        pid: holder(&lock),
                    });
                }
                Err(error) => tracing::warn!("{}", error.observe()),
            }
        }
        listed.sort_by(|a, b| a.record.image.cmp(&b.record.image));
        Ok(listed)
    }

    /// The record of an image.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn find(&self, image: &Path) -> Result<Option<ServingRecord>, ServeError> {
        let mut found = self.list()?.into_iter();
        let found = found.find(|listed| listed.record.image == image);
        Ok(found.map(|listed| listed.record))
    }

    /// Takes hold of a record, which need not be there yet.
    ///
    /// # Errors
    /// [`ServeError::Served`] when another process has it.
    pub fn hold(&self, record: &ServingRecord) -> Result<Held, ServeError> {
        let path = self.folder.join(format!("{}.json", record.migration));
        let Some(id) = record.id() else {
            let wrong = io::Error::from(io::ErrorKind::InvalidData);
            return Err(failed("use", &path)(wrong));
        };
        let lock_path = self.path(id, "lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("lock", &lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(ServeError::Served {
                path: record.image.clone(),
                pid: holder(&lock_path).unwrap_or(0),
            });
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(failed("lock", &lock_path))?;
        Ok(Held {
            path: self.path(id, "json"),
            folder: self.folder.clone(),
            lock_path,
            _lock: lock,
        })
    }
}

impl Held {
    /// Makes `record` what stands, durably.
    ///
    /// # Errors
    /// When it cannot be written; what stood before stands then.
    pub fn write(&self, record: &ServingRecord) -> Result<(), ServeError> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        let written = text.and_then(|text| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(&self.folder)?.sync_all()
        });
        written.map_err(failed("write", &self.path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the record.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<(), ServeError> {
        for path in [&self.path, &self.lock_path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A record that somebody has given, under any name.
///
/// # Errors
/// [`ServeError::Record`] when it cannot be read, or is of another version.
pub fn given(path: &Path) -> Result<ServingRecord, ServeError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text))
        .map_err(failed("read", path))?;
    let record: ServingRecord =
        serde_json::from_slice(&text).map_err(|e| failed("read", path)(e.into()))?;
    if record.version != VERSION {
        let wrong = io::Error::new(io::ErrorKind::InvalidData, "it is of another version");
        return Err(failed("read", path)(wrong));
    }
    Ok(record)
}

fn read(path: &Path) -> Result<ServingRecord, ServeError> {
    let record = given(path)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    if stem.as_deref() != Some(record.migration.as_str()) {
        let wrong = io::Error::new(
            io::ErrorKind::InvalidData,
            "it is under the name of another",
        );
        return Err(failed("read", path)(wrong));
    }
    Ok(record)
}

/// The process that holds a lock.
fn holder(lock: &Path) -> Option<u32> {
    let file = File::open(lock).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut pid = String::new();
    (&file).take(16).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}
