//! Level 1: the emulated machine with an AMD CPU and SVM, as a place to run a payload in.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::image;
use super::payload::Payload;
use super::rig::Rig;
use super::run::{Run, tail};
use crate::eventually;

/// Modules of the KVM host: kvm itself, taps and the bridge between them, and file systems in files for disks.
const MODULES: &[&str] = &["kvm-amd", "tun", "bridge", "loop", "crc32c_generic", "ext4"];

/// The CPU of level 1: AMD's, with SVM. Without AVX2, because QEMU 10.0 reads 32 bytes for the 16 of
/// a VINSERTI128 or VINSERTF128 from memory (fixed there by commit feea87cd6b): a program that uses it at
/// the end of its memory, as BLAKE3's code for AVX2 does, then ends by a fault that no real CPU has.
const CPU: &str = "EPYC,-avx2";
/// Kernel command line. The TSC is trusted and nothing is mitigated, because the emulator makes both
/// slow and neither is tested. The timer is a periodic one: with one-shot timers the machine was seen to stand
/// still for ever, halted with the timer's interrupt pending, which QEMU seems to lose seldom (docs/testing.md,
/// "Debugging it"). With the next tick the CPU sees both.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet tsc=reliable no_timer_check mitigations=off nokaslr \
                       nohz=off highres=off";

/// An emulated machine in which a payload is to run as root, with `/dev/kvm`.
#[derive(Debug)]
pub struct Level1<'a> {
    rig: &'a Rig,
    archive: Archive,
    memory_mib: u32,
    cpus: u32,
}

impl<'a> Level1<'a> {
    /// A machine with the payload in `/payload`.
    ///
    /// # Errors
    /// When something that its initramfs is made of is missing.
    pub fn new(rig: &'a Rig, payload: &Payload) -> Result<Self> {
        let mut archive = Archive::new();
        image::add_busybox(&mut archive)?;
        image::add_modules(&mut archive, &rig.kernel().modules()?, MODULES)?;
        archive.file("bin/exit-emulator", 0o755, &image::exit_program()?);
        archive.file("init", 0o755, include_bytes!("guest/level1-init.sh"));
        for name in &payload.directories {
            archive.directory(&format!("payload/{name}"));
        }
        for (name, content) in &payload.files {
            archive.file(&format!("payload/{name}"), 0o755, content);
        }
        for (name, path) in &payload.programs {
            image::add_program(&mut archive, name, path)?;
        }
        Ok(Self {
            rig,
            archive,
            memory_mib: 2048,
            cpus: 2,
        })
    }

    /// Number of emulated CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Boots the machine, waits for the payload's end and gives back its code and log.
    ///
    /// The log goes to `logs/NAME.log` of the rig's directory while it runs, so that a hang can be
    /// watched.
    ///
    /// # Errors
    /// When the emulator does not start, the payload does not end within `deadline`, or level 1 dies
    /// without reporting; with the end of the log.
    pub fn run(self, name: &str, deadline: Duration) -> Result<Run> {
        let logs = self.rig.dir().join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let log_file = logs.join(format!("{name}.log"));
        let log =
            File::create(&log_file).with_context(|| format!("make {}", log_file.display()))?;
        let errors = log.try_clone().context("share the log")?;

        let initramfs = tempfile::NamedTempFile::new().context("make a temporary file")?;
        std::fs::write(initramfs.path(), self.archive.finish()).context("write the initramfs")?;

        let mut command = self.rig.qemu();
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                CPU,
            ])
            .args([
                "-smp",
                &self.cpus.to_string(),
                "-m",
                &self.memory_mib.to_string(),
            ])
            .arg("-kernel")
            .arg(self.rig.kernel().image())
            .arg("-initrd")
            .arg(initramfs.path())
            .args(["-append", CMDLINE, "-serial", "stdio", "-monitor", "none"])
            .args(["-device", "isa-debug-exit,iobase=0x501,iosize=0x04"])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let mut emulator = Killed(command.spawn().context("start qemu-system-x86_64")?);

        let mut cpu_share = 1.0;
        let status = eventually(deadline, || {
            // Asked all the while, because it is gone with the process.
            cpu_share = cpu_share_of(emulator.0.id()).unwrap_or(cpu_share);
            emulator.0.try_wait().ok().flatten()
        });
        drop(emulator);
        let log = String::from_utf8_lossy(&image::read(&log_file)?).replace('\r', "");
        let told = format!("log {}, its end:\n{}", log_file.display(), tail(&log));
        let Some(status) = status else {
            bail!("level 1 did not end in {deadline:?}; {told}")
        };
        match status.code() {
            // isa-debug-exit makes it twice the code and one; 1 is also how QEMU says that it could
            // not start, but then the payload's end is not in the log.
            Some(status) if status % 2 == 1 && log.contains("level1: payload ended") => Ok(Run {
                code: status / 2,
                log,
                log_file,
                cpu_share,
            }),
            _ => bail!("level 1 died without reporting ({status}); {told}"),
        }
    }
}

/// Time on a CPU of all threads of a process, as share of that and the time they waited for one
/// (Documentation/scheduler/sched-stats.rst of the Linux kernel).
fn cpu_share_of(pid: u32) -> Option<f64> {
    let (mut ran, mut waited) = (0.0, 0.0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let told = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        let mut numbers = told.split_whitespace().map(str::parse::<f64>);
        ran += numbers.next()?.ok()?;
        waited += numbers.next()?.ok()?;
    }
    (ran > 0.0).then(|| ran / (ran + waited))
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // A failure means that it has ended meanwhile.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_a_cpu_is_known_of_a_process_that_lives() {
        let share = cpu_share_of(std::process::id());
        assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)));
        assert_eq!(cpu_share_of(u32::MAX), None);
    }
}
