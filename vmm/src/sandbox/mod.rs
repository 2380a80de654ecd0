//! What the process of a VM may do, and how it is kept to that.
//!
//! Two layers of the kernel, both for ever and both without privileges:
//!
//! - *seccomp*: which system calls a thread may make. Each thread says what kind it is when it begins
//!   and keeps only what that kind needs ([`Kind`]). A thread can never do more than the one that
//!   started it, so kinds that start others include them.
//! - *landlock*: which files and ports may be opened. Set before any thread is started.
//!
//! Whoever takes the process over through a bug in a device or a decoder has the rights of that thread
//! and the files of this VM; `docs/threat-model.md` says what that is, kind by kind.

mod call;
mod calls;
mod debug;
#[cfg(test)]
mod evaluation_tests;
mod files;
mod filter;
mod kinds;
mod refused;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::OnceLock;

use control::runtime_dir::VmDir;
use machine::opener;
use migration::journal::FileJournal;
use migration::observation::{Observation, Side};

pub use kinds::Kind;

use files::{COMMON, Grant, Use, grant};
use refused::Consequence;

/// How far the process of a VM is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sandbox {
    /// Confined; a system call that is not listed fails and is logged.
    #[default]
    On,
    /// Confined; a system call that is not listed ends the process.
    Strict,
    /// Not confined.
    Off,
}

/// Set once the process is confined.
static CONFINED: OnceLock<Sandbox> = OnceLock::new();

/// Where else than in the VM's folder the process works.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places<'a> {
    /// Socket file that it listens at and removes in the end.
    pub socket: Option<&'a Path>,
}

/// Confines this process, whose only thread is the calling one.
///
/// Returns what this kernel cannot enforce, to be told to the user.
///
/// # Errors
/// `sandbox.enter` when something else than the kernel's age is in the way.
pub fn enter(
    sandbox: Sandbox,
    dir: &VmDir,
    places: Places<'_>,
) -> Result<Vec<&'static str>, Observation> {
    let Some(consequence) = consequence(sandbox) else {
        return Ok(Vec::new());
    };
    prepare_records(dir);
    let mut missing = limit_calls(sandbox, consequence, Kind::Process)?;
    opener::start().map_err(|e| failed("start a thread", &e))?;
    let status = files::limit(&grants(dir, places)).map_err(|e| failed("limit files", &e))?;
    missing.extend(files::missing(status));
    migration::os::on_denial(refused::latest);
    migration::threads::STARTED.set(|kind| begin(kind.into()));
    devices::threads::STARTED.set(|kind| begin(kind.into()));
    machine::threads::STARTED.set(|kind| begin(kind.into()));
    control::threads::STARTED.set(|kind| match kind {
        control::threads::ThreadKind::Server => begin(Kind::Control),
        control::threads::ThreadKind::Request => inherit(Kind::Control),
    });
    tracing::info!(?sandbox, ?missing, "the process is confined");
    Ok(missing)
}

/// Confines this process, whose only thread is the calling one and which serves a disk: it opens nothing but its records in
/// `records`, and at `socket` removes what it listens at.
///
/// Returns what this kernel cannot enforce, to be told to the user.
///
/// # Errors
/// As [`enter`].
pub fn enter_serving(
    sandbox: Sandbox,
    records: &Path,
    socket: Option<&Path>,
) -> Result<Vec<&'static str>, Observation> {
    let Some(consequence) = consequence(sandbox) else {
        return Ok(Vec::new());
    };
    let mut granted: Vec<Grant> = COMMON
        .iter()
        .filter(|(_, what, _)| *what == Use::Read)
        .map(|&(path, what, _)| grant(path, what))
        .collect();
    granted.push(grant(records, Use::Folder));
    granted.extend(socket.map(of_socket));
    // First, as it takes calls that a thread which serves never makes.
    let status = files::limit(&granted).map_err(|e| failed("limit files", &e))?;
    let mut missing = limit_calls(sandbox, consequence, Kind::Serving)?;
    missing.extend(files::missing(status));
    refused::this_thread_is(Kind::Serving);
    migration::os::on_denial(refused::latest);
    migration::threads::STARTED.set(|kind| inherit(kind.into()));
    machine::threads::STARTED.set(|kind| inherit(kind.into()));
    tracing::info!(?sandbox, ?missing, "the process is confined");
    Ok(missing)
}

/// What a refused call does; `None` where none is.
fn consequence(sandbox: Sandbox) -> Option<Consequence> {
    match sandbox {
        Sandbox::Off => None,
        Sandbox::On => Some(Consequence::Fails),
        Sandbox::Strict => Some(Consequence::EndsProcess),
    }
}

/// Limits the system calls of this thread, and of those that it starts later, to what `kind` needs; what this kernel cannot
/// enforce.
fn limit_calls(
    sandbox: Sandbox,
    consequence: Consequence,
    kind: Kind,
) -> Result<Vec<&'static str>, Observation> {
    filter::settle_allocator();
    refused::handle(consequence).map_err(|e| failed("handle refused system calls", &e))?;
    filter::no_new_privileges().map_err(|e| failed("give up new privileges", &e))?;
    let filters = filter::of_all().map_err(|e| broken(&e))?;
    let whole = filter::of_kind(kind).map_err(|e| broken(&e))?;
    let installed = filter::install_all(&filters).and_then(|()| filter::install_all(whole));
    match installed {
        Ok(()) => {
            let _ = CONFINED.set(sandbox);
            Ok(Vec::new())
        }
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok(vec!["which system calls may be made (seccomp filters)"])
        }
        Err(e) => Err(failed("limit system calls", &e)),
    }
}

/// Keeps the calling thread to what `kind` needs, for the rest of its life; does nothing in a process
/// that is not confined.
pub(crate) fn begin(kind: Kind) {
    if CONFINED.get().is_none() {
        return;
    }
    refused::this_thread_is(kind);
    let installed = filter::of_kind(kind)
        .map_err(std::io::Error::other)
        .and_then(filter::install_all);
    if let Err(e) = installed {
        // It stays as confined as the thread that started it.
        tracing::warn!(kind = kind.name(), error = %e, "a thread keeps more rights than it needs");
    }
}

/// Names the calling thread in messages, where it was started by one that is confined already.
pub(crate) fn inherit(kind: Kind) {
    refused::this_thread_is(kind);
}

/// Number of system calls that were refused so far.
pub fn refusals() -> u64 {
    refused::count()
}

/// Everything that may be opened after the process is confined.
fn grants(dir: &VmDir, Places { socket }: Places<'_>) -> Vec<Grant> {
    let root = dir.runtime().path();
    let mut grants: Vec<Grant> = COMMON
        .iter()
        .map(|&(path, what, _)| grant(path, what))
        .collect();
    grants.push(grant(dir.path(), Use::Folder));
    grants.push(grant(dir.migrations(), Use::Folder));
    grants.push(grant(root, Use::RemoveFolders));
    grants.push(grant(dir.runtime().lock_file(), Use::ReadWrite));
    grants.extend(socket.map(of_socket));
    grants
}

/// The removal of a socket file that is listened at.
fn of_socket(socket: &Path) -> Grant {
    let folder = socket
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    grant(folder.unwrap_or(Path::new(".")), Use::RemoveFiles)
}

/// Makes the identity of this host's records while the folders above them, which may be as new, can
/// be made durable too.
fn prepare_records(dir: &VmDir) {
    let records = dir.migrations();
    if !records.join("identity").exists()
        && let Err(e) = FileJournal::open(records)
    {
        // Whoever needs them will fail and say so.
        tracing::warn!(error = %e, "records of migrations cannot be kept");
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Observation {
    Observation::new(
        Side::Client,
        "sandbox.enter",
        format!("cannot {what}, which --sandbox off leaves out"),
    )
    .caused_by(Observation::from_error(
        Side::Client,
        "sandbox.enter",
        error,
    ))
}

fn broken(why: &str) -> Observation {
    Observation::new(
        Side::Client,
        "sandbox.enter",
        format!("the lists of system calls do not compile: {why}"),
    )
}

impl From<migration::threads::ThreadKind> for Kind {
    fn from(kind: migration::threads::ThreadKind) -> Self {
        use migration::threads::ThreadKind;
        match kind {
            ThreadKind::Link => Self::Link,
            ThreadKind::Stream => Self::Stream,
            ThreadKind::Reader => Self::Reader,
            ThreadKind::Hash => Self::Hash,
            ThreadKind::Flush => Self::Flush,
            ThreadKind::Reception => Self::Reception,
            ThreadKind::Serve => Self::Serving,
            ThreadKind::Pull => Self::Pull,
        }
    }
}

impl From<devices::threads::ThreadKind> for Kind {
    fn from(kind: devices::threads::ThreadKind) -> Self {
        use devices::threads::ThreadKind;
        match kind {
            ThreadKind::Disk => Self::Disk,
            ThreadKind::Ring => Self::Ring,
            ThreadKind::Net => Self::Net,
            ThreadKind::Queue => Self::Queue,
            ThreadKind::Helper => Self::Helper,
        }
    }
}

impl From<machine::threads::ThreadKind> for Kind {
    fn from(kind: machine::threads::ThreadKind) -> Self {
        use machine::threads::ThreadKind;
        match kind {
            ThreadKind::Vcpu => Self::Vcpu,
            ThreadKind::Disk => Self::Disk,
            ThreadKind::Helper => Self::Helper,
            ThreadKind::Console => Self::Console,
            ThreadKind::Caretaker => Self::Caretaker,
            ThreadKind::Holder => Self::Holder,
            ThreadKind::Migration => Self::Migration,
            ThreadKind::DiskMove => Self::DiskMove,
            ThreadKind::Serving => Self::Serving,
            ThreadKind::Pull => Self::Pull,
            ThreadKind::Incoming => Self::Incoming,
        }
    }
}
