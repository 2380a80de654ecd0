//! A write that is to be durable when it ends leaves nothing behind in the page cache.
#![allow(unsafe_code)] // cachestat(2) is in no crate that is used here.

use std::fs::File;
use std::os::fd::AsRawFd;

use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage};

/// The system call's number, the same for all architectures (Linux 6.5).
const CACHESTAT: libc::c_long = 451;

/// Pages of the file that wait to be written, and those that are being written; `None` where the kernel
/// does not tell.
fn unwritten(file: &File) -> Option<u64> {
    let (range, mut stat) = ([0_u64; 2], [0_u64; 5]);
    let (from, into) = (range.as_ptr(), stat.as_mut_ptr());
    // SAFETY: the descriptor is open, and both structs are as long as the kernel takes them to be: offset
    // and length (0 is up to the end), and five counts.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), from, into, 0) };
    (done == 0).then_some(stat[1] + stat[2])
}

#[test]
fn a_durable_write_has_been_written_when_it_ends_and_another_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let (disk, file) = (
        RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap(),
        File::open(&path).unwrap(),
    );
    let write = |durability| {
        let mut bytes = [7; 8192];
        let buffers = [Buffer::new(&mut bytes)];
        disk.write(&buffers, 4096, durability).unwrap();
        unwritten(&file)
    };
    disk.flush().unwrap();
    if unwritten(&file) != Some(0) {
        println!("skipped: this kernel or file system does not tell what it has written");
        return;
    }
    assert_eq!(write(Durability::Immediate), Some(0));
    // The kernel may write it at any moment, but not every time.
    assert!((0..100).any(|_| write(Durability::Flushed) != Some(0)));
    disk.flush().unwrap();
    assert_eq!(write(Durability::Immediate), Some(0));
}
