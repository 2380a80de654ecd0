//! An ordinary user who may use `/dev/kvm` by a group, made by a test that is root.
//!
//! Each command gets a mount namespace of its own in which `/dev/kvm` is another node of the same
//! device, owned by a group that nobody is in, and runs as a user that nobody is.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Host;
use crate::binary;

/// Makes the node and becomes the user: FOLDER MAJOR MINOR UID GID GROUPS COMMAND...
const SCRIPT: &str = r#"
set -e
folder=$1 major=$2 minor=$3 uid=$4 gid=$5 groups=$6
shift 6
mount -t tmpfs -o mode=0755 vmm-test "$folder"
mknod "$folder/kvm" c "$major" "$minor"
chown "0:$gid" "$folder/kvm"
chmod 0660 "$folder/kvm"
mount --bind "$folder/kvm" /dev/kvm
exec setpriv --reuid "$uid" --regid "$uid" $groups --bounding-set=-all --inh-caps=-all -- "$@"
"#;

/// The user.
pub struct Unprivileged {
    folder: tempfile::TempDir,
    major: u32,
    minor: u32,
    id: u32,
}

impl Unprivileged {
    /// A user who is in the group that may open `/dev/kvm`.
    ///
    /// # Errors
    /// When this machine cannot make one: the test is not root, or may not mount or make devices.
    pub fn new() -> Result<Self> {
        let device = fs::metadata("/dev/kvm").context("look at /dev/kvm")?.rdev();
        let user = Self {
            folder: tempfile::tempdir().context("make a folder")?,
            major: rustix::fs::major(device),
            minor: rustix::fs::minor(device),
            // Above what systems give out, below what is 16 bits.
            id: 61_000 + std::process::id() % 4000,
        };
        let mut open = Command::new("sh");
        open.args(["-c", "exec 3<>/dev/kvm"]);
        let tried = user
            .command(&open)
            .stdin(Stdio::null())
            .output()
            .context("start unshare")?;
        ensure!(
            tried.status.success(),
            "{}",
            String::from_utf8_lossy(&tried.stderr).trim()
        );
        Ok(user)
    }

    /// Its user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.id
    }

    /// Gives the user the folders of a host, and the program.
    ///
    /// # Panics
    /// When they cannot be given away.
    pub fn own(&self, host: &Host) {
        let program = host.path().join("vmm");
        let binary = binary::vmm().unwrap_or_else(|e| panic!("{e:#}"));
        fs::copy(binary, &program).expect("copy of the program");
        self.give(host.path());
    }

    fn give(&self, path: &Path) {
        chown(path, Some(self.id), Some(self.id)).expect("file given to the user");
        if path.is_dir() {
            for entry in fs::read_dir(path).expect("folder") {
                self.give(&entry.expect("entry").path());
            }
        }
    }

    /// `command`, run by the user; a program that lies in its runtime folder's parent is preferred,
    /// which the user can reach wherever the build lies.
    #[must_use]
    pub fn command(&self, command: &Command) -> Command {
        self.with_groups(command, &format!("--groups {}", self.id + 1))
    }

    /// As [`Unprivileged::command`], but not in the group of `/dev/kvm`.
    #[must_use]
    pub fn without_group(&self, command: &Command) -> Command {
        self.with_groups(command, "--clear-groups")
    }

    fn with_groups(&self, command: &Command, groups: &str) -> Command {
        let runtime = command
            .get_envs()
            .find(|(name, _)| *name == "VMM_RUNTIME_DIR" || *name == "XDG_RUNTIME_DIR")
            .and_then(|(_, value)| value);
        let copied = Path::new(runtime.unwrap_or_default())
            .ancestors()
            .map(|folder| folder.join("vmm"))
            .find(|program| program.is_file());
        let mut wrapped = Command::new("unshare");
        wrapped
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-c", SCRIPT, "sh"])
            .arg(self.folder.path())
            .args([self.major, self.minor, self.id, self.id + 1].map(|n| n.to_string()))
            .arg(groups)
            .arg(
                copied
                    .as_deref()
                    .map_or(command.get_program(), Path::as_os_str),
            )
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }
}
