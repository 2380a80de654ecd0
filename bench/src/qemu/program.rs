//! Which QEMUs there are on this machine, and how one is started.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::error::BenchError;
use super::super::interrupt;
use super::super::process::POLL;

/// The program as packages name it.
const PROGRAM: &str = "qemu-system-x86_64";
/// Folders beside the build output where `tests/setup.sh` unpacks QEMUs, newest first.
const UNPACKED: [&str; 2] = ["rig/qemu", "rig/qemu-7.2"];
/// Where unpacked packages have their libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Longest that a program may take to tell its version.
const VERSION: Duration = Duration::from_secs(20);

/// A QEMU as the user names it: a program, and the folder of its firmware where that is not beside
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuPath {
    /// The program.
    pub program: PathBuf,
    /// Its firmware.
    pub share: Option<PathBuf>,
}

impl std::str::FromStr for QemuPath {
    type Err = String;

    /// Reads `PATH[,share=DIR]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (program, share) = match text.split_once(",share=") {
            Some((program, share)) => (program, Some(share)),
            None => (text, None),
        };
        if program.is_empty() || share.is_some_and(str::is_empty) {
            return Err("expected PATH or PATH,share=DIR".to_owned());
        }
        Ok(Self {
            program: program.into(),
            share: share.map(PathBuf::from),
        })
    }
}

/// A QEMU that starts on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qemu {
    /// Its version, as in `10.0.2`.
    pub version: String,
    program: PathBuf,
    /// The root below which its package was unpacked, unless it is installed.
    root: Option<PathBuf>,
    share: Option<PathBuf>,
}

/// QEMUs that were found, and what was looked for in vain.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// One of each version.
    pub qemus: Vec<Qemu>,
    /// Why there are not more, for people.
    pub absent: Vec<String>,
}

impl Found {
    /// The QEMUs that the user named, the installed one, and those that the set-up of the tests
    /// unpacked beside `program`, the `vmm` of a build.
    ///
    /// # Errors
    /// When a QEMU that the user named does not start.
    pub fn look(named: &[QemuPath], program: &Path) -> Result<Self, BenchError> {
        let mut found = Self::default();
        for path in named {
            match Qemu::at(path) {
                Ok(qemu) => found.add(qemu),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) => return Err(error),
            }
        }
        let installed = std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
            .unwrap_or_default()
            .into_iter()
            .map(|folder| folder.join(PROGRAM))
            .find(|program| program.is_file());
        if installed.is_none() {
            found.absent.push(format!("no {PROGRAM} in PATH"));
        }
        // A build's program is <target>/<profile>/vmm.
        let target = program.parent().and_then(Path::parent);
        let unpacked = UNPACKED.iter().filter_map(|root| {
            let program = target?.join(root).join("usr/bin").join(PROGRAM);
            Some((*root, program))
        });
        let mut candidates: Vec<_> = installed.into_iter().collect();
        for (root, program) in unpacked {
            if program.is_file() {
                candidates.push(program);
            } else {
                found
                    .absent
                    .push(format!("no {root} beside the build (tests/setup.sh)"));
            }
        }
        for program in candidates {
            let path = QemuPath {
                program,
                share: None,
            };
            match Qemu::at(&path) {
                Ok(qemu) => found.add(qemu),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(error) => found.absent.push(error.to_string()),
            }
        }
        Ok(found)
    }

    fn add(&mut self, qemu: Qemu) {
        if !self.qemus.iter().any(|q| q.version == qemu.version) {
            self.qemus.push(qemu);
        }
    }
}

impl fmt::Display for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QEMU {}", self.version)
    }
}

impl Qemu {
    fn at(path: &QemuPath) -> Result<Self, BenchError> {
        let QemuPath { program, share } = path;
        let mut qemu = Self {
            version: String::new(),
            program: program.clone(),
            root: unpacked_root(program),
            share: share.clone(),
        };
        qemu.version = qemu.ask_version()?;
        Ok(qemu)
    }

    fn ask_version(&self) -> Result<String, BenchError> {
        let failed = |why: String| BenchError::NoQemu {
            program: self.program.clone(),
            why,
        };
        let mut child = self
            .command()
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let deadline = std::time::Instant::now() + VERSION;
        let ended = loop {
            match child.try_wait() {
                Ok(None) if interrupt::requested() => break Err(BenchError::Interrupted),
                Ok(None) if std::time::Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => break Err(failed("it does not tell its version".to_owned())),
                Ok(Some(_)) => break Ok(()),
                Err(e) => break Err(failed(e.to_string())),
            }
        };
        if let Err(error) = ended {
            // Both fail only when it has ended by now.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        let output = child
            .wait_with_output()
            .map_err(|e| failed(e.to_string()))?;
        version_in(&String::from_utf8_lossy(&output.stdout))
            .ok_or_else(|| failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// The command, which finds its libraries, modules and firmware beside itself when it was
    /// unpacked and not installed.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            // Older packages keep libraries of the early boot in /lib.
            let libraries = LIBRARIES.map(|folder| root.join(folder).into_os_string());
            command
                .env("QEMU_MODULE_DIR", root.join(LIBRARIES[0]).join("qemu"))
                .env("LD_LIBRARY_PATH", libraries.join(OsStr::new(":")));
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        if let Some(share) = &self.share {
            command.arg("-L").arg(share);
        }
        command
    }
}

/// The folder above `usr/bin` of an unpacked package.
fn unpacked_root(program: &Path) -> Option<PathBuf> {
    let root = program
        .parent()
        .filter(|folder| folder.ends_with("usr/bin"))?
        .parent()?
        .parent()?;
    (root != Path::new("/")).then(|| root.to_owned())
}

fn version_in(text: &str) -> Option<String> {
    let (_, after) = text.lines().next()?.split_once("version ")?;
    let version = after.split([' ', '(']).next()?;
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_first_line() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(version_in(text).as_deref(), Some("10.0.2"));
        assert_eq!(
            version_in("QEMU emulator version 7.2.17\n").as_deref(),
            Some("7.2.17")
        );
        for wrong in ["", "qemu\n", "version \n"] {
            assert_eq!(version_in(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_qemu_is_named_by_its_program_and_the_folder_of_its_firmware() {
        let path: QemuPath = "/opt/q/bin/qemu,share=/opt/q/share".parse().unwrap();
        assert_eq!(path.program, Path::new("/opt/q/bin/qemu"));
        assert_eq!(path.share.as_deref(), Some(Path::new("/opt/q/share")));
        assert_eq!("/usr/bin/q".parse::<QemuPath>().unwrap().share, None);
        for wrong in ["", ",share=/x", "/x,share="] {
            assert!(wrong.parse::<QemuPath>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_an_unpacked_qemu_brings_its_libraries() {
        let root = |path| unpacked_root(Path::new(path));
        assert_eq!(root("/usr/bin/qemu"), None);
        assert_eq!(root("/opt/qemu"), None);
        assert_eq!(root("/t/rig/qemu/usr/bin/q"), Some("/t/rig/qemu".into()));
    }

    #[test]
    fn a_named_program_that_is_no_qemu_is_refused_and_a_found_one_only_told() {
        let path = QemuPath {
            program: "/bin/true".into(),
            share: None,
        };
        let error = Found::look(&[path], Path::new("/x/release/vmm")).unwrap_err();
        assert!(error.to_string().contains("/bin/true"), "{error}");
        let found = Found::look(&[], Path::new("/x/release/vmm")).unwrap();
        assert!(found.absent.iter().any(|why| why.contains("rig/qemu")));
    }
}
