//! What a host or a process must not have when nothing runs there: folders, memory, machines, disks.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything in the runtime directory that belongs to a VM which has not ended in order.
///
/// The lock file and the journals of hand-overs outlive VMs by design; what the host offers of its CPU
/// is written there by its operator. How a VM ended is kept, with its logs and nothing else.
pub fn folders(root: &Path) -> Vec<PathBuf> {
    const OF_THE_HOST: [&str; 4] = [".lock", "migrations", "serving", "host-cpu.toml"];
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| !OF_THE_HOST.iter().any(|name| entry.file_name() == *name))
        .map(|entry| entry.path())
        .filter(|path| !is_an_end(path))
        .collect()
}

/// Whether the folder holds the end of a VM, and nothing beside.
fn is_an_end(folder: &Path) -> bool {
    const KEPT: [&str; 7] = [
        ".vmm",
        "pid",
        "end.json",
        "serial.log",
        "serial.log.1",
        "vmm.log",
        "vmm.log.1",
    ];
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let is_kept = |name: &std::ffi::OsString| KEPT.iter().any(|kept| name == kept);
    names.iter().any(|name| name == "end.json") && names.iter().all(is_kept)
}

/// What the process has open, as the kernel names it.
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    descriptors(pid)
        .filter_map(|descriptor| fs::read_link(descriptor).ok())
        .collect()
}

fn descriptors(pid: u32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// Guest memories that the process holds; a file that may become one has no size yet.
pub fn memories(pid: u32) -> usize {
    let of_memory = |descriptor: &PathBuf| {
        fs::read_link(descriptor).is_ok_and(|path| {
            let path = path.as_os_str().as_bytes();
            path.starts_with(b"/memfd:") || path.starts_with(b"/vmm-ram ")
        })
    };
    descriptors(pid)
        .filter(of_memory)
        .filter(|descriptor| fs::metadata(descriptor).is_ok_and(|file| file.len() > 0))
        .count()
}

/// Virtual machines that the process holds.
pub fn machines(pid: u32) -> usize {
    open_files(pid)
        .iter()
        .filter(|path| {
            path.as_os_str()
                .as_bytes()
                .starts_with(b"anon_inode:kvm-vm")
        })
        .count()
}

/// Resident shared memory of the process in KiB: the guest memory that is really there.
///
/// # Panics
/// When there is no such process.
pub fn shared_memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status of the process");
    status
        .lines()
        .find_map(|line| line.strip_prefix("RssShmem:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .expect("RssShmem")
}

/// Whether anybody has a claim on the disk image.
///
/// # Panics
/// When there is no such file.
pub fn is_locked(path: &Path) -> bool {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // The lock goes with the file.
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

/// Parts of an image that are locked, as the kernel lists them: first and last byte of each.
///
/// # Panics
/// When there is no such file.
pub fn locks(path: &Path) -> Vec<(u64, u64)> {
    let inode = fs::metadata(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .ino();
    let listed = fs::read_to_string("/proc/locks").expect("locks of the kernel");
    // `1: OFDLCK ADVISORY WRITE -1 fe:00:7332367 4611686016279955712 4611686016279955713`
    let lock = |line: &str| {
        let mut words = line.split_ascii_whitespace().rev();
        let (last, first, file) = (words.next()?, words.next()?, words.next()?);
        let found = file.rsplit(':').next()?.parse::<u64>().ok()?;
        let ends = (first.parse().ok()?, last.parse().unwrap_or(u64::MAX));
        (found == inode).then_some(ends)
    };
    listed.lines().filter_map(lock).collect()
}

/// States of the TCP connections that the process has, as the kernel numbers them; those that only
/// listen do not count.
pub fn connections(pid: u32) -> Vec<String> {
    let open = open_files(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let state = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (state, inode) = (words.get(3)?, words.get(9)?);
        let socket = PathBuf::from(format!("socket:[{inode}]"));
        (*state != "0A" && open.contains(&socket)).then(|| (*state).to_owned())
    };
    table.lines().skip(1).filter_map(state).collect()
}

/// Name of the threads that answer requests: they are few, and stay for a while in case of another.
pub const ANSWERING: &str = "requests";

/// Names of the process's threads.
pub fn threads(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Records of migrations that a host keeps below its runtime directory.
pub fn records(root: &Path) -> usize {
    let Ok(entries) = fs::read_dir(root.join("migrations")) else {
        return 0;
    };
    entries.flatten().count()
}
