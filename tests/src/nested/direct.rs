//! This machine as the host of a payload, where its KVM is one of hardware virtualization.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};

use super::image;
use super::payload::Payload;
use super::rig::find_program;
use super::run::{Run, tail};
use crate::{eventually, skip};

/// Why guests of this machine do not run by hardware virtualization, or the payload could not make their networks;
/// `None` if it can run here.
#[must_use]
pub fn lacks() -> Option<String> {
    lacks_module(Path::new("/sys/module"))
        .or_else(skip::lacks_kvm)
        .or_else(|| {
            (!geteuid().is_root())
                .then(|| "networks of its own need root, which this is not run as".into())
        })
}

fn lacks_module(modules: &Path) -> Option<String> {
    let has = |name| modules.join(name).is_dir();
    // With several, the one that is not hardware's would have been loaded for a reason.
    let hardware = (has("kvm_intel") || has("kvm_amd")) && !has("kvm_pvm");
    (!hardware).then(|| "this machine's KVM is neither kvm_intel nor kvm_amd".into())
}

/// Runs the payload on this machine as root, in a folder of its own below `dir`. The log goes to `logs/NAME.log` in
/// `dir` while it runs. All processes that it leaves in its process group are ended.
///
/// # Errors
/// When it cannot be started, or does not end within `deadline`; with the end of the log.
pub fn run(payload: &Payload, dir: &Path, name: &str, deadline: Duration) -> Result<Run> {
    let folder = tempfile::tempdir_in(dir).context("make a folder for the payload")?;
    let [tools, programs] = ["tools", "programs"].map(|name| folder.path().join(name));
    for directory in [&tools, &programs] {
        make_directory(directory)?;
    }
    let busybox = find_program("busybox")?;
    let installed = Command::new(&busybox)
        .args(["--install", "-s"])
        .arg(&tools)
        .status()
        .context("start busybox")?;
    ensure!(installed.success(), "busybox installs no tools");
    for (name, path) in &payload.programs {
        let link = programs.join(name);
        symlink(path, &link).with_context(|| format!("link {}", link.display()))?;
    }
    let home = folder.path().join("payload");
    make_directory(&home)?;
    for directory in &payload.directories {
        make_directory(&home.join(directory))?;
    }
    for (name, content) in &payload.files {
        write(&home.join(name), content)?;
    }

    let logs = dir.join("logs");
    make_directory(&logs)?;
    let log_file = logs.join(format!("{name}.log"));
    let log = File::create(&log_file).with_context(|| format!("make {}", log_file.display()))?;
    let errors = log.try_clone().context("share the log")?;
    let mut command = Command::new(tools.join("sh"));
    command
        .arg("./run.sh")
        .current_dir(&home)
        .env(
            "PATH",
            std::env::join_paths([&tools, &programs]).context("name the folders of programs")?,
        )
        .env("PROGRAMS", &programs)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let mut group = Group(command.spawn().context("start the payload")?);
    let status = eventually(deadline, || group.0.try_wait().ok().flatten());
    drop(group);
    let log = String::from_utf8_lossy(&image::read(&log_file)?).replace('\r', "");
    let Some(status) = status else {
        bail!(
            "the payload did not end in {deadline:?}; log {}, its end:\n{}",
            log_file.display(),
            tail(&log)
        )
    };
    Ok(Run {
        // A signal is a failure as any other.
        code: status.code().unwrap_or(127),
        log,
        log_file,
        cpu_share: 1.0,
    })
}

/// A child whose process group does not outlive its test.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // A failure means that all have ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_virtualization_counts() {
        let modules = tempfile::tempdir().unwrap();
        let load = |name| fs::create_dir(modules.path().join(name)).unwrap();
        assert!(lacks_module(modules.path()).is_some());
        load("kvm_intel");
        assert_eq!(lacks_module(modules.path()), None);
        load("kvm_pvm");
        assert!(lacks_module(modules.path()).is_some());
        let of_amd = tempfile::tempdir().unwrap();
        fs::create_dir(of_amd.path().join("kvm_amd")).unwrap();
        assert_eq!(lacks_module(of_amd.path()), None);
    }

    #[test]
    fn payload_that_a_signal_ends_has_not_passed() {
        if find_program("busybox").is_err() {
            crate::skip!("busybox is not installed")
        }
        let dir = tempfile::tempdir().unwrap();
        let payload = Payload::new("kill -9 $$");
        let run = run(&payload, dir.path(), "direct", Duration::from_secs(60)).unwrap();
        assert_ne!(run.code, 0);
    }

    #[test]
    fn payload_finds_its_folder_and_programs_and_leaves_nothing() {
        if find_program("busybox").is_err() {
            crate::skip!("busybox is not installed")
        }
        let dir = tempfile::tempdir().unwrap();
        let payload = Payload::new("set -e; [ -d d/e ]; cat a/b; echo \"$(mine X)\"; exit 9")
            .file("a/b", b"told: file\n")
            .directory("d/e")
            .program("mine", Path::new("/bin/echo"));
        let run = run(&payload, dir.path(), "direct", Duration::from_secs(60)).unwrap();
        assert_eq!((run.code, run.log.as_str()), (9, "told: file\nX\n"));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the log: {left:?}");
    }

    #[test]
    fn payload_that_hangs_is_ended() {
        if find_program("busybox").is_err() {
            crate::skip!("busybox is not installed")
        }
        let dir = tempfile::tempdir().unwrap();
        let left_behind = dir.path().join("left-behind");
        let payload = Payload::new(&format!(
            "echo begun; sleep 1000 & echo $! >{}; wait",
            left_behind.display()
        ));
        let error = run(&payload, dir.path(), "direct", Duration::from_secs(2)).unwrap_err();
        let told = format!("{error:#}");
        assert!(told.contains("did not end"), "{told}");
        assert!(told.contains("begun"), "its log is told: {told}");
        let pid: u32 = fs::read_to_string(&left_behind)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // Whoever adopts it may not have waited for it yet.
        let ended = eventually(Duration::from_secs(20), || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            (status.is_empty() || status.contains("State:\tZ")).then_some(())
        });
        assert!(ended.is_some(), "what it started is left behind");
    }
}
