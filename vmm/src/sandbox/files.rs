//! Which files, devices and ports the process may open once it is confined, by landlock.
//!
//! What is open already stays so: disks, kernel and the listening socket are opened outside (see
//! `opener.rs`), so no rule names them. Rules hold for a thread and those that it starts later, so the
//! main thread makes them before it starts any.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use thiserror::Error;

/// Rights that exist up to this version are asked for; later ones are not known to this program.
const ASKED: ABI = ABI::V6;

/// What may be done at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Read the file, or the files below the folder.
    Read,
    /// Read and write the file.
    ReadWrite,
    /// Read, write and control the device.
    Device,
    /// Make, read, write and remove files and sockets in the folder.
    Folder,
    /// Remove files of the folder.
    RemoveFiles,
    /// Remove empty folders of the folder.
    RemoveFolders,
}

impl Use {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile.into(),
            Self::ReadWrite => AccessFs::ReadFile | AccessFs::WriteFile,
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Folder => {
                AccessFs::ReadFile
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::ReadDir
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
            }
            Self::RemoveFiles => AccessFs::RemoveFile.into(),
            Self::RemoveFolders => AccessFs::RemoveDir.into(),
        }
    }
}

/// A path and what may be done there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) path: PathBuf,
    pub(super) what: Use,
}

/// What every VM may open wherever it is there.
pub(super) const COMMON: &[(&str, Use, &str)] = &[
    ("/dev/kvm", Use::Device, "the machine"),
    (
        "/dev/null",
        Use::ReadWrite,
        "standard streams of a detached VM",
    ),
    ("/dev/urandom", Use::Read, "identifiers of migrations"),
    (
        "/proc/self/cgroup",
        Use::Read,
        "how many threads are worth while",
    ),
    (
        "/proc/self/mountinfo",
        Use::Read,
        "how many threads are worth while",
    ),
    (
        "/sys/fs/cgroup",
        Use::Read,
        "how many threads are worth while",
    ),
    (
        "/sys/devices/system/cpu/online",
        Use::Read,
        "how many threads are worth while",
    ),
    ("/proc/self/maps", Use::Read, "where a panic happened"),
    ("/proc/self/exe", Use::Read, "where a panic happened"),
];

/// Why the rules cannot be made.
#[derive(Debug, Error)]
#[error("limit files and ports")]
pub(super) struct FilesError(#[from] RulesetError);

/// What this kernel's landlock leaves unlimited; empty where it can do all that is asked for.
pub(super) fn missing(status: LandlockStatus) -> Vec<&'static str> {
    let version = match status {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    };
    if version == 0 {
        return vec!["which files may be opened, and which TCP ports listened at (landlock)"];
    }
    [
        (ABI::V2, "renaming between folders (landlock 2, Linux 5.19)"),
        (ABI::V3, "shortening of files (landlock 3, Linux 6.2)"),
        (ABI::V4, "TCP ports to listen at (landlock 4, Linux 6.7)"),
        (ABI::V5, "control of devices (landlock 5, Linux 6.10)"),
        (
            ABI::V6,
            "signals to other processes and abstract sockets (landlock 6, Linux 6.12)",
        ),
    ]
    .into_iter()
    .filter(|(since, _)| version < *since as u32)
    .map(|(_, what)| what)
    .collect()
}

/// Limits the calling thread, and those that it starts from now on, to `grants`; no TCP port may be
/// listened at. Paths that do not exist are left out.
///
/// # Errors
/// When the kernel refuses for another reason than its age.
pub(super) fn limit(grants: &[Grant]) -> Result<LandlockStatus, FilesError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for Grant { path, what } in grants {
        let Ok(at) = PathFd::new(path) else { continue };
        ruleset = ruleset.add_rule(PathBeneath::new(at, what.rights()))?;
    }
    Ok(ruleset.restrict_self()?.landlock)
}

/// The grant that says `what` of `path`.
pub(super) fn grant(path: impl AsRef<Path>, what: Use) -> Grant {
    Grant {
        path: path.as_ref().to_owned(),
        what,
    }
}
