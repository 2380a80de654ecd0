//! Whether a descriptor is what was said of it.

use std::os::fd::AsFd;

use migration::observation::Observation;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};

use super::message::{FileAccess, FileKind, FileNote, refuse};

impl FileNote {
    /// Whether `descriptor` is what this says, as it is now; waits for no storage.
    ///
    /// # Errors
    /// `file.type` for what is no file of this kind, or is open as a path only; `file.access` where it was opened for
    /// something else than said, or appends.
    pub(super) fn fits(&self, descriptor: impl AsFd) -> Result<(), Observation> {
        let name = &self.name;
        let unknown = |e| {
            refuse(
                "file.type",
                format!("what {name:?} is cannot be known: {e}"),
            )
        };
        let flags = fcntl_getfl(&descriptor).map_err(unknown)?;
        if flags.contains(OFlags::PATH) {
            let message =
                format!("{name:?} was opened as a path, which can be neither read nor written");
            return Err(refuse("file.type", message));
        }
        // Its type is all that is asked for, which the kernel knows: a server that does not answer is not asked.
        let flagged = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let known = statx(&descriptor, c"", flagged, StatxFlags::TYPE).map_err(unknown)?;
        let kind = FileType::from_raw_mode(known.stx_mode.into());
        if !self.kind.takes(kind) {
            let message = format!("{name:?} is {}, not {}", called(kind), self.kind.told());
            return Err(refuse("file.type", message));
        }
        if flags.contains(OFlags::APPEND) {
            // Linux writes there whatever offset is given: pwrite(2), BUGS.
            let message = format!("{name:?} was opened to append: all writes would go to its end");
            return Err(refuse("file.access", message));
        }
        if opened_for(flags) != Some(self.access) {
            let message = format!(
                "{name:?} was not opened to be {}, as was said",
                self.access.told()
            );
            return Err(refuse("file.access", message));
        }
        Ok(())
    }
}

fn opened_for(flags: OFlags) -> Option<FileAccess> {
    let mode = flags & OFlags::RWMODE;
    [
        (OFlags::RDONLY, FileAccess::Read),
        (OFlags::WRONLY, FileAccess::Write),
        (OFlags::RDWR, FileAccess::ReadWrite),
    ]
    .into_iter()
    .find_map(|(flags, access)| (flags == mode).then_some(access))
}

impl FileKind {
    fn takes(self, kind: FileType) -> bool {
        match self {
            Self::Disk => matches!(kind, FileType::RegularFile | FileType::BlockDevice),
            Self::Output => kind == FileType::RegularFile,
        }
    }

    /// How it is called.
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::Disk => "a file or block device for a disk",
            Self::Output => "a file to be written",
        }
    }
}

impl FileAccess {
    /// What can be done with what was opened so.
    pub(super) fn told(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "written",
            Self::ReadWrite => "read and written",
        }
    }
}

fn called(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "something without a type",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn fits(kind: FileKind, access: FileAccess, descriptor: impl Into<OwnedFd>) -> String {
        let name = "it".to_owned();
        let note = FileNote { kind, access, name };
        match note.fits(descriptor.into()) {
            Ok(()) => "fits".into(),
            Err(why) => why.id,
        }
    }

    #[test]
    fn only_files_that_are_opened_as_was_said_fit() {
        use FileAccess::{Read, ReadWrite, Write};
        use FileKind::{Disk, Output};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let open = |mode: FileAccess| {
            let mut options = OpenOptions::new();
            options.read(mode != Write).write(mode != Read);
            options
        };
        let modes = [Read, Write, ReadWrite];
        for (kind, said, opened) in [Disk, Output]
            .into_iter()
            .flat_map(|kind| modes.map(|said| (kind, said)))
            .flat_map(|(kind, said)| modes.map(|opened| (kind, said, opened)))
        {
            let file = open(opened).open(&path).unwrap();
            let wanted = if said == opened {
                "fits"
            } else {
                "file.access"
            };
            assert_eq!(
                fits(kind, said, file),
                wanted,
                "{kind:?} {said:?} {opened:?}"
            );
        }
        let appends = OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(fits(Output, Write, appends), "file.access");
        let by_path = open(Read).custom_flags(libc::O_PATH).open(&path).unwrap();
        assert_eq!(fits(Disk, Read, by_path), "file.type");
        let others: [OwnedFd; 5] = [
            File::open(folder.path()).unwrap().into(),
            UnixStream::pair().unwrap().0.into(),
            std::io::pipe().unwrap().0.into(),
            File::open("/dev/null").unwrap().into(),
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        ];
        for other in others {
            assert_eq!(fits(Disk, Read, other), "file.type");
        }
    }
}
