//! The folder of a VM as it lies on disk: whether it is ours, who holds it, and its removal.
//!
//! What is in the runtime directory may be anybody's: it may be `/tmp`, or somebody's home. So a folder
//! says itself that it is ours, by a mark that is in it before it has its name. Nothing is concluded from
//! what is absent. A folder is opened once, never through a link, and all that is done goes by that
//! descriptor; files are removed by the names that we give, and never a folder with something else in it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, mkdirat, openat,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::files::{CONSOLE, CONTROL, END, END_DRAFT, FAILED, LOGS, PID, SOCKETS};

/// Says that a folder is ours.
const MARK: &str = ".vmm";
const MARK_TEXT: &[u8] = b"The folder of a VM: vmm made it, and removes what it made.\n";
/// Name that a folder has while it is made, under the lock of the runtime directory.
const DRAFT: &str = ".vmm-new";
/// Bytes of a pid file.
const PID_LEN: u64 = 32;

/// What is called by a name.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// Something that we did not make.
    NotOurs(&'static str),
    /// The folder of a VM.
    Vm(Folder, Holder),
}

/// Who has a VM's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A live process; 0 where it cannot be told.
    Process(u32),
    /// Nobody; the process that had it is known by this number, if at all.
    Nobody(Option<u32>),
}

/// What is left of a folder that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// The folder, with something in it that we did not make.
    Foreign(String),
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    dir: OwnedFd,
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Whether both are the same file.
fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Looks at what lies at `path`.
///
/// # Errors
/// When it cannot be known, though it may be ours.
pub(super) fn look(path: &Path) -> io::Result<Found> {
    let folder = match open_dir(path) {
        Ok(dir) => Folder { dir },
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::NotOurs("it is no folder")),
        // What we make can be read by the user who made it.
        Err(Errno::ACCESS) if is_others(path) => {
            return Ok(Found::NotOurs("it is another user's"));
        }
        Err(e) => return Err(e.into()),
    };
    let marked = folder.is_marked()?;
    let holder = folder.holder()?;
    let is_ours = match holder {
        // A process that serves both sockets is a VM, whatever became of its files.
        Holder::Process(_) => {
            marked || (folder.has_socket(CONTROL)? && folder.has_socket(CONSOLE)?)
        }
        // Version 0.1 made no mark: it left a pid file and nothing unknown.
        Holder::Nobody(pid) => marked || (pid.is_some() && folder.foreign()?.is_none()),
    };
    Ok(if is_ours {
        Found::Vm(folder, holder)
    } else {
        Found::NotOurs("no VM made it")
    })
}

fn is_others(path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| stat.st_uid != rustix::process::geteuid().as_raw())
}

impl Folder {
    /// Opens the folder at `path`, whoever made it.
    pub(super) fn open_at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: open_dir(path)?,
        })
    }

    /// Makes the folder of a VM in `root`, held by this process, and gives it `name`, which is free:
    /// it never has its name without its mark. The caller holds the lock of the runtime directory.
    ///
    /// The second value is the lock: who has it open holds the folder.
    ///
    /// # Errors
    /// What failed, and at which path.
    pub(super) fn make(root: &Path, name: &str) -> Result<(Self, File), (PathBuf, io::Error)> {
        let draft = root.join(DRAFT);
        let failed = |e: io::Error| (draft.clone(), e);
        clear_draft(&draft).map_err(failed)?;
        let made = (|| {
            mkdirat(rustix::fs::CWD, &draft, Mode::RWXU)?;
            let folder = Self {
                dir: open_dir(&draft)?,
            };
            folder.mark()?;
            let mut lock = folder.create(PID, OFlags::EXCL)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            writeln!(lock, "{}", std::process::id())?;
            Ok((folder, lock))
        })();
        let made = made.map_err(failed)?;
        let to = root.join(name);
        match std::fs::rename(&draft, &to) {
            Ok(()) => Ok(made),
            Err(e) => {
                // The error that matters is the one before.
                let _ = made.0.remove(&draft);
                Err((to, e))
            }
        }
    }

    /// Creates a file, or opens it for writing, never through a link.
    pub(super) fn create(&self, name: &str, more: OFlags) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        Ok(openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Opens a regular file for reading; `None` where there is none.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) if file_type(&fstat(&file)?) == FileType::RegularFile => Ok(Some(file.into())),
            // A link, a socket without a file, or something else that we did not make.
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives a file another name in the folder, instead of one that may have it.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    /// Removes what is called `name` and is no folder; nothing is done where there is none.
    pub(super) fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Says that the folder is ours, also after somebody removed the mark.
    pub(super) fn mark(&self) -> io::Result<()> {
        self.create(MARK, OFlags::TRUNC)?.write_all(MARK_TEXT)
    }

    fn is_marked(&self) -> io::Result<bool> {
        let mut text = Vec::new();
        if let Some(file) = self.open(MARK)? {
            file.take(MARK_TEXT.len() as u64 + 1)
                .read_to_end(&mut text)?;
        }
        Ok(text == MARK_TEXT)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn has_socket(&self, name: &str) -> io::Result<bool> {
        let stat = self.stat(name)?;
        Ok(stat.is_some_and(|stat| file_type(&stat) == FileType::Socket))
    }

    /// Who holds it: who has locked its pid file, or, where somebody removed that, who listens on its
    /// control socket.
    pub(super) fn holder(&self) -> io::Result<Holder> {
        let mut pid = None;
        if let Some(file) = self.open(PID)? {
            let locked = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
            let mut text = String::new();
            // What is no number names nobody.
            let _ = file.take(PID_LEN).read_to_string(&mut text);
            pid = text.trim_end().parse().ok();
            if locked {
                return Ok(Holder::Process(pid.unwrap_or(0)));
            }
        }
        Ok(match self.listener()? {
            Some(listener) => Holder::Process(listener),
            None => Holder::Nobody(pid),
        })
    }

    /// Process that listens on the control socket, 0 where it cannot be told; never waits for it.
    fn listener(&self) -> io::Result<Option<u32>> {
        if !self.has_socket(CONTROL)? {
            return Ok(None);
        }
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(self.short_path(CONTROL))?) {
            Ok(()) => {
                let peer = sockopt::socket_peercred(&socket)?.pid.as_raw_nonzero();
                Ok(Some(peer.get().unsigned_abs()))
            }
            // It listens, and does not answer now.
            Err(Errno::AGAIN) => Ok(Some(0)),
            Err(Errno::CONNREFUSED | Errno::NOENT | Errno::PROTOTYPE) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A short way to a file of the folder while it is open: socket addresses hold 107 bytes.
    pub(super) fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()).into()
    }

    /// The first thing in the folder that we do not make.
    pub(super) fn foreign(&self) -> io::Result<Option<String>> {
        // Its own descriptor: that of the folder keeps its place.
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let shown = name.to_string_lossy().into_owned();
            let stat = self.stat(&shown)?;
            let is_folder = stat.is_some_and(|stat| file_type(&stat) == FileType::Directory);
            if is_folder || !ours().any(|known| name == known) {
                return Ok(Some(shown));
            }
        }
        Ok(None)
    }

    /// Bytes on disk of what we made in it.
    pub(super) fn size(&self) -> u64 {
        ours()
            .filter_map(|name| self.stat(name).ok().flatten())
            .map(|stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
            .sum()
    }

    /// Seconds since 1970 at which the first of `names` that is there was written.
    pub(super) fn written(&self, names: &[&str]) -> i64 {
        let mut stats = names
            .iter()
            .filter_map(|name| self.stat(name).ok().flatten());
        stats.next().map_or(0, |stat| stat.st_mtime)
    }

    /// Whether it lies at `path`.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let here = fstat(&self.dir);
        rustix::fs::lstat(path).is_ok_and(|there| here.is_ok_and(|here| same(&here, &there)))
    }

    /// Removes what we made in it, and itself if nothing else is there and it still lies at `path`.
    pub(super) fn remove(&self, path: &Path) -> io::Result<Left> {
        let mut first = Ok(());
        for name in ours() {
            match self.unlink(name) {
                // A folder of that name: told below.
                Err(e) if e.kind() == io::ErrorKind::IsADirectory => {}
                unlinked => first = first.and(unlinked),
            }
        }
        first?;
        if !self.is_at(path) {
            return Ok(Left::Nothing);
        }
        match unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(Left::Nothing),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let what = self.foreign().ok().flatten();
                Ok(Left::Foreign(what.unwrap_or_else(|| "something".into())))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Names of what we make in the folder of a VM; its mark is the last.
fn ours() -> impl Iterator<Item = &'static str> {
    [PID, END, END_DRAFT, FAILED]
        .into_iter()
        .chain(SOCKETS)
        .chain(LOGS)
        .chain([MARK])
}

/// Removes what a process left that was killed while it made a folder.
fn clear_draft(draft: &Path) -> io::Result<()> {
    let folder = match open_dir(draft) {
        Ok(dir) => Folder { dir },
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    match folder.remove(draft)? {
        Left::Nothing => Ok(()),
        Left::Foreign(what) => Err(io::Error::other(format!("{what} in it is not ours"))),
    }
}
