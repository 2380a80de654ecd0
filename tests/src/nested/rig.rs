//! What `tests/setup.sh` fetched: QEMU, a kernel and its modules.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::modules::Modules;
use crate::target;

/// The unpacked packages.
#[derive(Debug)]
pub struct Rig {
    dir: PathBuf,
    kernel: Kernel,
}

/// A distribution's kernel.
#[derive(Debug)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn at(dir: &Path) -> Option<Self> {
        let image = only_entry(&dir.join("boot"), "vmlinuz-")?;
        let modules = only_entry(&dir.join("lib/modules"), "")
            .or_else(|| only_entry(&dir.join("usr/lib/modules"), ""))?;
        Some(Self { image, modules })
    }

    /// The kernel itself, a bzImage.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its modules.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn modules(&self) -> Result<Modules> {
        Modules::read(&self.modules)
    }
}

impl Rig {
    /// Finds the rig, or says why the nested job cannot run here.
    ///
    /// # Errors
    /// With the reason that the set-up script left, or that it was not run.
    pub fn find() -> Result<Self, String> {
        let dir = target::target_dir()
            .map_err(|error| format!("{error:#}"))?
            .join("rig");
        Self::at(&dir)
    }

    fn at(dir: &Path) -> Result<Self, String> {
        if let Ok(reason) = std::fs::read_to_string(dir.join("missing")) {
            return Err(reason.trim().to_owned());
        }
        let not_set_up = "tests/setup.sh was not run";
        let kernel = Kernel::at(&dir.join("kernel")).ok_or(not_set_up)?;
        if !dir.join("qemu/usr/bin/qemu-system-x86_64").is_file() {
            return Err(not_set_up.into());
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            kernel,
        })
    }

    /// Directory for logs and images of the job.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel of the distribution's release, which level 1 runs too.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// A further kernel for guests: `backports`, of the release's backports, or `full`, which has as modules what
    /// the others have built in.
    ///
    /// # Errors
    /// With the reason that the set-up script left, or that it was not run.
    pub fn further_kernel(&self, name: &str) -> Result<Kernel, String> {
        let missing = self.dir.join(format!("missing-kernel-{name}"));
        if let Ok(reason) = std::fs::read_to_string(missing) {
            return Err(format!("{name} kernel: {}", reason.trim()));
        }
        Kernel::at(&self.dir.join(format!("kernel-{name}")))
            .ok_or_else(|| format!("{name} kernel: tests/setup.sh was not run"))
    }

    /// A QEMU command that finds its libraries, modules and firmware beside itself.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let root = self.dir.join("qemu");
        let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
        let libraries =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| root.join(dir));
        let libraries: Vec<_> = libraries.iter().map(|dir| dir.to_string_lossy()).collect();
        command.env("LD_LIBRARY_PATH", libraries.join(":")).env(
            "QEMU_MODULE_DIR",
            root.join("usr/lib/x86_64-linux-gnu/qemu"),
        );
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        command
    }
}

fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let mut paths = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path());
    paths.next()
}

/// Finds a program in `PATH` and where Debian keeps programs for root.
///
/// # Errors
/// When it is in none of these places.
pub fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// Shared libraries that a program is linked with, its loader included; none if it is static.
///
/// # Errors
/// When one of them is not on this machine.
pub fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("start ldd")?;
    if !output.status.success() {
        // How ldd says that there is nothing to list.
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !text.contains("not found"),
        "{} lacks libraries:\n{text}",
        program.display()
    );
    // `name => /path (0x..)`, or `/path (0x..)` for the loader.
    let words = text.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    });
    Ok(words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_the_set_up_script_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("missing"), "no network\n").unwrap();
        assert_eq!(Rig::at(dir.path()).unwrap_err(), "no network");
    }

    #[test]
    fn missing_set_up_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            Rig::at(dir.path()).unwrap_err(),
            "tests/setup.sh was not run"
        );
    }

    #[test]
    fn shared_libraries_of_a_rust_program_hold_libc_and_the_loader() {
        let libraries = shared_libraries(&std::env::current_exe().unwrap()).unwrap();
        let has = |name| {
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains(name))
        };
        assert!(has("libc.so") && has("ld-linux"), "{libraries:?}");
    }

    #[test]
    fn unknown_program_is_an_error() {
        assert!(find_program("no-such-program-here").is_err());
        assert!(find_program("sh").is_ok());
    }
}
