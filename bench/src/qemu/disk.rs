//! A QEMU whose guest has a disk.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use machine::probe::PROBE_GUEST;

use super::super::error::BenchError;
use super::super::guest::{Guest, Workload};
use super::super::hosts::Hosts;
use super::command_line::{KERNEL, arguments, escaped, guest};
use super::program::Qemu;
use super::variant::Variant;

/// How QEMU reads and writes the file of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskVariant {
    /// By io_uring past the page cache, in its main loop.
    Uring,
    /// The same in a thread of the disk's own.
    UringThread,
    /// By a pool of threads through the page cache, as this engine does.
    Cached,
}

impl DiskVariant {
    /// All that are measured.
    pub const ALL: [Self; 3] = [Self::Uring, Self::UringThread, Self::Cached];

    /// Whether this engine is compared with it: by io_uring past the cache.
    pub fn is_anchor(self) -> bool {
        self != Self::Cached
    }

    fn drive(self) -> &'static str {
        match self {
            Self::Uring | Self::UringThread => "aio=io_uring,cache=none",
            Self::Cached => "aio=threads,cache=writeback",
        }
    }
}

impl fmt::Display for DiskVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring, no cache",
            Self::UringThread => "io_uring, no cache, own thread",
            Self::Cached => "threads, page cache",
        })
    }
}

/// Starts a guest with the command line `line` and the disk at `image`, which has `format`.
pub(crate) fn start_on_disk(
    hosts: &Hosts,
    qemu: &Qemu,
    variant: DiskVariant,
    workload: &Workload,
    (image, format): (&Path, &str),
    line: &str,
) -> Result<Guest, BenchError> {
    let kernel = hosts.file(KERNEL, PROBE_GUEST)?;
    let (log, serial) = (hosts.path("log"), hosts.path("serial"));
    let mut command = qemu.command();
    command
        .args(arguments(workload, Variant::STANDARD[0], false))
        .args(guest(&kernel, line, &serial, &log))
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(disk(variant, image, format));
    let shown = format!("QEMU {} ({variant})", qemu.version);
    let process = hosts.run(command, shown, Stdio::null())?;
    let console = Box::new(move || UnixStream::connect(&serial));
    Ok(Guest::new(process, "on a disk of QEMU's", log, console))
}

fn disk(variant: DiskVariant, image: &Path, format: &str) -> Vec<String> {
    let drive = format!(
        "if=none,id=disk,format={format},{},discard=unmap,file={}",
        variant.drive(),
        escaped(image)
    );
    let mut words = vec!["-drive".to_owned(), drive];
    let mut device = "virtio-blk-device,drive=disk".to_owned();
    if variant == DiskVariant::UringThread {
        words.extend(["-object".to_owned(), "iothread,id=thread".to_owned()]);
        device += ",iothread=thread";
    }
    words.extend(["-device".to_owned(), device]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_goes_by_io_uring_past_the_cache() {
        for variant in DiskVariant::ALL {
            let words = disk(variant, Path::new("/a,b"), "raw").join(" ");
            let direct = words.contains("aio=io_uring,cache=none");
            assert_eq!(direct, variant.is_anchor(), "{words}");
            assert!(words.contains("format=raw") && words.contains("file=/a,,b"));
            assert_eq!(
                words.contains("iothread"),
                variant == DiskVariant::UringThread
            );
        }
    }
}
