//! Who a directory of records is: a random number in the file `identity`, made once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::{JournalError, failed};
use crate::id::HostId;

/// Name of the file.
const IDENTITY: &str = "identity";
/// How far up folders may have been made along with the journal's.
const NEW_FOLDERS: usize = 4;

/// The identity of `directory`; the first who asks makes it, and it is durable before anybody has it.
pub(super) fn of(directory: &Path) -> Result<HostId, JournalError> {
    let path = directory.join(IDENTITY);
    if let Some(identity) = read(&path)? {
        return Ok(identity);
    }
    let fresh = HostId::random().map_err(failed("choose", &path))?;
    let draft = directory.join(format!("{IDENTITY}.{fresh}"));
    let made = make(&draft, fresh).and_then(|()| match std::fs::hard_link(&draft, &path) {
        // Someone else was faster: theirs holds.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    // It stays behind where even that fails; nobody reads it.
    let _ = std::fs::remove_file(&draft);
    made.and_then(|()| sync(directory))
        .map_err(failed("make", &path))?;
    read(&path)?.ok_or_else(|| failed("read", &path)(io::ErrorKind::NotFound.into()))
}

fn make(draft: &Path, identity: HostId) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    writeln!(file, "{identity}")?;
    file.sync_all()
}

/// Makes the folder durable, and with it those above that may be as new.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()?;
    for above in directory.ancestors().skip(1).take(NEW_FOLDERS) {
        // What may not be read was not made by us.
        if let Ok(folder) = File::open(above) {
            folder.sync_all()?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<HostId>, JournalError> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
        Ok(text) => match text.trim_end().parse() {
            Ok(identity) => Ok(Some(identity)),
            Err(error) => Err(failed("read", path)(io::Error::new(
                io::ErrorKind::InvalidData,
                error,
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_directory_keeps_its_identity_and_shares_it_with_no_other() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = of(one.path()).unwrap();
        assert_eq!(of(one.path()).unwrap(), identity);
        assert_ne!(of(two.path()).unwrap(), identity);
    }

    #[test]
    fn all_who_open_a_new_directory_at_once_agree_and_leave_no_draft() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let seen: BTreeSet<HostId> = std::thread::scope(|scope| {
                let askers: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| of(directory.path()).unwrap()))
                    .collect();
                askers.into_iter().map(|a| a.join().unwrap()).collect()
            });
            assert_eq!(seen.len(), 1);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(IDENTITY), "0123").unwrap();
        assert!(of(directory.path()).is_err());
        assert!(of(directory.path()).is_err());
    }
}
