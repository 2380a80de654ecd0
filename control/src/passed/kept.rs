//! What a VM was passed and nobody has taken.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use migration::observation::Observation;

use super::message::{FileAccess, FileId, FileKind, FileNote, KeptFile, KeptFiles, refuse};

/// Files that are kept at once.
const KEPT_LIMIT: usize = 32;

/// A file that a client has opened for the VM.
#[derive(Debug)]
pub struct PassedFile {
    /// The open file; its flags, offset and locks are also the client's as long as that keeps its own descriptor.
    pub descriptor: OwnedFd,
    /// What the client said of it, as far as that can be checked.
    pub note: FileNote,
}

/// A connection at which files are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection(pub(super) u64);

#[derive(Debug)]
struct Kept {
    file: PassedFile,
    by: Connection,
}

/// The files of a VM that nobody has taken: 32 at most. Nothing here waits for storage; who takes a file closes it.
#[derive(Debug, Default)]
pub struct PassedFiles {
    kept: Mutex<BTreeMap<FileId, Kept>>,
}

impl PassedFiles {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<FileId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `files`, which `by` has passed, until they are taken or given back.
    ///
    /// # Errors
    /// `file.too-many`, `host.resources`; all of them are still the caller's then.
    pub(super) fn keep(
        &self,
        by: Connection,
        files: &mut Vec<PassedFile>,
    ) -> Result<Vec<FileId>, Observation> {
        let ids: Vec<FileId> = files
            .iter()
            .map(|_| FileId::random())
            .collect::<Result<_, _>>()
            .map_err(|e| refuse("host.resources", format!("draw an identifier: {e}")))?;
        let mut kept = self.kept();
        if kept.len() + files.len() > KEPT_LIMIT {
            let message = format!("the VM has {KEPT_LIMIT} files that nobody has taken, or would");
            return Err(refuse("file.too-many", message));
        }
        let files = files.drain(..).map(|file| Kept { file, by });
        kept.extend(ids.iter().copied().zip(files));
        Ok(ids)
    }

    /// Takes the file `id`, which is to be `kind` and used for `access`; it is the caller's from now on.
    ///
    /// # Errors
    /// `file.unknown`; `file.kind` and `file.access` where it was passed for something else, and is kept.
    pub fn claim(
        &self,
        id: FileId,
        kind: FileKind,
        access: FileAccess,
    ) -> Result<PassedFile, Observation> {
        self.take(id, |note| {
            if note.kind != kind {
                let (name, passed, wanted) = (&note.name, note.kind.told(), kind.told());
                let message = format!("{name:?} was passed as {passed}, and {wanted} is needed");
                return Err(refuse("file.kind", message));
            }
            if !note.access.allows(access) {
                let (name, only) = (&note.name, note.access.told());
                let message = format!(
                    "{name:?} was opened to be {only}, and is to be {}",
                    access.told()
                );
                return Err(refuse("file.access", message));
            }
            Ok(())
        })
    }

    /// Takes the file `id`, whatever it is for.
    ///
    /// # Errors
    /// `file.unknown`.
    pub fn let_go(&self, id: FileId) -> Result<PassedFile, Observation> {
        self.take(id, |_| Ok(()))
    }

    fn take(
        &self,
        id: FileId,
        fits: impl FnOnce(&FileNote) -> Result<(), Observation>,
    ) -> Result<PassedFile, Observation> {
        let mut kept = self.kept();
        let unknown = || refuse("file.unknown", format!("the VM has no file {id} any more"));
        fits(&kept.get(&id).ok_or_else(unknown)?.file.note)?;
        kept.remove(&id).map(|kept| kept.file).ok_or_else(unknown)
    }

    /// Those of `by` that nobody has taken; they are the caller's from now on.
    pub(super) fn give_back(&self, by: Connection) -> Vec<PassedFile> {
        let mut kept = self.kept();
        let given_back = kept.extract_if(.., |_, kept| kept.by == by);
        given_back.map(|(_, kept)| kept.file).collect()
    }

    /// What is kept.
    pub fn list(&self) -> KeptFiles {
        let kept = self.kept();
        let files = kept.iter().map(|(&id, Kept { file, .. })| KeptFile {
            id,
            kind: file.note.kind,
            access: file.note.access,
            name: file.note.name.clone(),
        });
        KeptFiles {
            files: files.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FileAccess::{Read, ReadWrite, Write};
    use FileKind::{Disk, Output};

    fn files(kind: FileKind, access: FileAccess, count: usize) -> Vec<PassedFile> {
        let file = || PassedFile {
            descriptor: std::fs::File::open("/dev/null").unwrap().into(),
            note: FileNote {
                kind,
                access,
                name: "it".into(),
            },
        };
        (0..count).map(|_| file()).collect()
    }

    #[test]
    fn a_file_is_taken_once_and_only_for_what_it_was_passed() {
        let passed = PassedFiles::default();
        let ids = passed
            .keep(Connection(1), &mut files(Disk, Read, 1))
            .unwrap();
        let claim = |kind, access| match passed.claim(ids[0], kind, access) {
            Ok(_) => "taken".to_owned(),
            Err(why) => why.id,
        };
        assert_eq!(claim(Output, Read), "file.kind");
        assert_eq!(claim(Disk, ReadWrite), "file.access");
        assert_eq!(claim(Disk, Write), "file.access");
        assert_eq!(passed.list().files.len(), 1, "it is kept");
        assert_eq!(claim(Disk, Read), "taken");
        assert_eq!(claim(Disk, Read), "file.unknown");
        assert_eq!(passed.let_go(ids[0]).unwrap_err().id, "file.unknown");
    }

    #[test]
    fn what_may_be_read_and_written_may_be_either() {
        let passed = PassedFiles::default();
        for access in [Read, Write, ReadWrite] {
            let ids = passed
                .keep(Connection(1), &mut files(Disk, ReadWrite, 1))
                .unwrap();
            let _ = passed.claim(ids[0], Disk, access).unwrap();
        }
    }

    #[test]
    fn who_parts_takes_along_what_is_its_own_and_not_taken() {
        let passed = PassedFiles::default();
        let first = passed
            .keep(Connection(1), &mut files(Disk, Read, 3))
            .unwrap();
        let second = passed
            .keep(Connection(2), &mut files(Disk, Read, 1))
            .unwrap();
        let taken = passed.claim(first[1], Disk, Read).unwrap();
        assert_eq!(passed.give_back(Connection(1)).len(), 2);
        let left: Vec<_> = passed.list().files.iter().map(|file| file.id).collect();
        assert_eq!(left, second);
        drop(taken);
    }

    #[test]
    fn more_than_are_kept_at_once_are_refused_as_a_whole() {
        let passed = PassedFiles::default();
        let _ = passed
            .keep(Connection(1), &mut files(Disk, Read, KEPT_LIMIT - 1))
            .unwrap();
        let mut two = files(Disk, Read, 2);
        let refused = passed.keep(Connection(2), &mut two).unwrap_err();
        assert_eq!((refused.id.as_str(), two.len()), ("file.too-many", 2));
        two.pop();
        let _ = passed.keep(Connection(2), &mut two).unwrap();
        assert!(two.is_empty());
    }
}
