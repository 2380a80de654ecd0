//! What `/proc` tells of a process: CPU time, memory, and the memory of its guest.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::BenchError;

/// Ticks of the CPU times in `/proc` a second; part of the kernel's ABI on x86-64 (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;
/// Blocks that `stat` counts in (stat(2)).
const STAT_BLOCK: u64 = 512;

/// A process by its id.
#[derive(Debug, Clone)]
pub(super) struct Process {
    folder: PathBuf,
}

/// Resident memory of a process by kind, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resident {
    /// Private memory: heap and stacks.
    pub anonymous: u64,
    /// Mapped files: the program and its libraries.
    pub file: u64,
    /// Shared memory, which is guest RAM.
    pub shared: u64,
}

impl Process {
    pub fn new(pid: u32) -> Self {
        Self {
            folder: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    /// CPU seconds in user and kernel mode, of all threads, ended ones included. Also of a process
    /// that ended and was not waited for.
    pub fn cpu_seconds(&self) -> Result<f64, BenchError> {
        let path = self.folder.join("stat");
        read(&path, cpu_seconds)
    }

    /// Ids of the threads whose names begin with `prefix`.
    pub fn threads_named(&self, prefix: &str) -> Result<Vec<u32>, BenchError> {
        let tasks = self.folder.join("task");
        let failed = |e| BenchError::Proc(tasks.clone(), e);
        let mut threads = Vec::new();
        for task in fs::read_dir(&tasks).map_err(failed)? {
            let task = task.map_err(failed)?;
            // A thread may end between being listed and being read.
            let named = fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| name.starts_with(prefix));
            threads.extend(
                task.file_name()
                    .to_str()
                    .and_then(|id| id.parse::<u32>().ok())
                    .filter(|_| named),
            );
        }
        Ok(threads)
    }

    /// CPU seconds of these threads together; `None` when one of them is gone.
    pub fn thread_seconds(&self, threads: &[u32]) -> Option<f64> {
        let seconds = threads.iter().map(|thread| {
            let stat = self.folder.join(format!("task/{thread}/stat"));
            cpu_seconds(&fs::read_to_string(stat).ok()?)
        });
        seconds.sum()
    }

    /// Resident memory now.
    pub fn resident(&self) -> Result<Resident, BenchError> {
        read(&self.folder.join("status"), resident)
    }

    /// Bytes that the kernel has allocated for the memory files that the process holds open: guest RAM
    /// that is really there, whoever touched it.
    pub fn ram_bytes(&self) -> Result<u64, BenchError> {
        let fds = self.folder.join("fd");
        let failed = |e| BenchError::Proc(fds.clone(), e);
        let mut by_inode = HashMap::new();
        for fd in fs::read_dir(&fds).map_err(failed)? {
            let fd = fd.map_err(failed)?.path();
            let of_memory = fs::read_link(&fd).is_ok_and(|target| {
                let target = target.to_string_lossy();
                target.starts_with("/memfd:") || target.starts_with("/vmm-ram ")
            });
            // A descriptor may be closed between being listed and being read.
            if let Some(file) = of_memory.then(|| fs::metadata(&fd).ok()).flatten() {
                by_inode.insert((file.dev(), file.ino()), file.blocks() * STAT_BLOCK);
            }
        }
        Ok(by_inode.values().sum())
    }
}

/// Bytes of memory that can be had without swapping.
pub(super) fn available_memory() -> Result<u64, BenchError> {
    read(Path::new("/proc/meminfo"), |text| {
        kibibytes(text, "MemAvailable")
    })
}

fn read<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, BenchError> {
    let failed = |e| BenchError::Proc(path.to_owned(), e);
    let text = fs::read_to_string(path).map_err(failed)?;
    parse(&text).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// Fields 14 and 15 of `stat`. Field 2, the name, may itself hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut after_name = stat[stat.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .skip(11);
    let mut ticks = || after_name.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(user.checked_add(system)? as f64 / TICKS_PER_SECOND)
}

fn resident(status: &str) -> Option<Resident> {
    Some(Resident {
        anonymous: kibibytes(status, "RssAnon")?,
        file: kibibytes(status, "RssFile")?,
        shared: kibibytes(status, "RssShmem")?,
    })
}

/// The value in bytes of a line such as `RssAnon: 1234 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let number = line.trim().strip_suffix("kB")?.trim_end();
    number.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_parentheses() {
        let stat = "4242 (a) S (b) 1) R 1 4242 4242 0 -1 4194304 100 0 0 0 250 75 0 0 20 0 5 0 \
                    12345 1000000 250 18446744073709551615";
        assert_eq!(cpu_seconds(stat), Some(3.25));
        for wrong in [
            "",
            "1 (a",
            "1 (a) R 1 2 3",
            "1 (a) R 1 2 3 4 5 6 7 8 9 10 x 1",
        ] {
            assert_eq!(cpu_seconds(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn resident_memory_is_told_apart_by_kind() {
        let status = "Name:\tvmm\nVmRSS:\t  1060000 kB\nRssAnon:\t    9000 kB\n\
                      RssFile:\t    4000 kB\nRssShmem:\t 1047000 kB\nThreads:\t7\n";
        assert_eq!(
            resident(status),
            Some(Resident {
                anonymous: 9000 << 10,
                file: 4000 << 10,
                shared: 1_047_000 << 10
            })
        );
        assert_eq!(resident("RssAnon:\t 1 kB\n"), None);
        assert_eq!(
            resident("RssAnon: x kB\nRssFile: 1 kB\nRssShmem: 1 kB\n"),
            None
        );
    }

    #[test]
    fn a_process_can_be_read() {
        let this = Process::new(std::process::id());
        assert!(this.cpu_seconds().unwrap() >= 0.0);
        let threads = this.threads_named("").unwrap();
        assert!(threads.contains(&std::process::id()));
        assert_eq!(this.threads_named("no such name").unwrap(), [0; 0]);
        assert!(this.thread_seconds(&threads[..1]).unwrap() >= 0.0);
        assert_eq!(this.thread_seconds(&[u32::MAX]), None);
        let resident = this.resident().unwrap();
        assert!(resident.anonymous > 0 && resident.file > 0, "{resident:?}");
        assert!(available_memory().unwrap() > 0);
        assert!(matches!(
            Process::new(u32::MAX).resident(),
            Err(BenchError::Proc(..))
        ));
    }
}
