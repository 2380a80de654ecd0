//! What `/proc` tells of a process: CPU time, memory, and the memory of its guest.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use procfs_core::process::{Stat, Status};
use procfs_core::{FromRead, Meminfo, ProcError, ProcErrorExt, ProcResult};

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
        Ok(cpu_seconds(&Stat::from_file(self.folder.join("stat"))?))
    }

    /// Ids of the threads whose names begin with `prefix`.
    pub fn threads_named(&self, prefix: &str) -> Result<Vec<u32>, BenchError> {
        // A thread may end between being listed and being read.
        let threads = self.entries("task")?.into_iter().filter_map(|task| {
            let thread = Stat::from_file(task.join("stat")).ok()?;
            let id = u32::try_from(thread.pid).ok()?;
            thread.comm.starts_with(prefix).then_some(id)
        });
        Ok(threads.collect())
    }

    /// CPU seconds of these threads together; `None` when one of them is gone.
    pub fn thread_seconds(&self, threads: &[u32]) -> Option<f64> {
        let seconds = threads.iter().map(|thread| {
            let stat = self.folder.join(format!("task/{thread}/stat"));
            Some(cpu_seconds(&Stat::from_file(stat).ok()?))
        });
        seconds.sum()
    }

    /// Resident memory now.
    pub fn resident(&self) -> Result<Resident, BenchError> {
        let status = Status::from_file(self.folder.join("status"))?;
        let bytes = |kibibytes| told(kibibytes).map(|kibibytes| kibibytes << 10);
        Ok(Resident {
            anonymous: bytes(status.rssanon)?,
            file: bytes(status.rssfile)?,
            shared: bytes(status.rssshmem)?,
        })
    }

    /// Bytes that the kernel has allocated for the memory files that the process holds open: guest RAM
    /// that is really there, whoever touched it.
    pub fn ram_bytes(&self) -> Result<u64, BenchError> {
        let mut by_inode = HashMap::new();
        for fd in self.entries("fd")? {
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

    /// What a folder of the process holds.
    fn entries(&self, folder: &str) -> ProcResult<Vec<PathBuf>> {
        let folder = self.folder.join(folder);
        let paths = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        paths.map_err(|error| ProcError::from(error).error_path(&folder))
    }
}

/// Bytes of memory that can be had without swapping.
pub(super) fn available_memory() -> Result<u64, BenchError> {
    Ok(told(Meminfo::from_file("/proc/meminfo")?.mem_available)?)
}

/// Bytes of files that the kernel holds in memory, guest RAM and other shared memory aside.
pub(super) fn page_cache() -> Result<u64, BenchError> {
    let memory = Meminfo::from_file("/proc/meminfo")?;
    let files = memory.cached + memory.buffers;
    Ok(files.saturating_sub(told(memory.shmem)?))
}

/// A figure that kernels tell since Linux 4.5; not of a process that ended.
fn told(figure: Option<u64>) -> ProcResult<u64> {
    figure.ok_or(ProcError::Incomplete(None))
}

fn cpu_seconds(stat: &Stat) -> f64 {
    (stat.utime + stat.stime) as f64 / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

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
