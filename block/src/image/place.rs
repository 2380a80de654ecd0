//! Where an image lies: what is below a loop device, and who else can reach it.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::sys::{self, LoopStatus};
use crate::Access;

/// The file that a loop device shows whole, open as the device is.
#[derive(Debug)]
pub struct Below {
    /// The file.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
}

/// Device and inode number by which the image that `metadata` tells of is known; a block device is known
/// by its own number, whatever node leads to it.
pub(crate) fn place(metadata: &Metadata) -> (u64, u64) {
    if metadata.file_type().is_block_device() {
        (metadata.rdev(), 0)
    } else {
        (metadata.dev(), metadata.ino())
    }
}

/// File systems that one host has for itself (`statfs`, linux/magic.h; ZFS's own).
const LOCAL: [u64; 8] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
];

/// Whether the regular file `file` lies on a file system that no other host can use at the same time.
pub(crate) fn is_local(file: &File) -> bool {
    let of = rustix::fs::fstatfs(file);
    of.is_ok_and(|of| LOCAL.contains(&(of.f_type as u64)))
}

/// The file below `image`, where that is a loop device that shows all of it, and it can be opened from
/// here.
///
/// It is no error if it cannot: the file may have been removed, or be another user's.
pub(crate) fn below(image: &File, metadata: &Metadata, access: Access) -> Option<Below> {
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let status = sys::loop_status(image).ok()?;
    let LoopStatus {
        device,
        inode,
        offset: 0,
        limit: 0,
    } = status
    else {
        return None;
    };
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let name = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let path = PathBuf::from(std::fs::read_to_string(name).ok()?.trim_end_matches('\n'));
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .ok()?;
    let found = file.metadata().ok()?;
    // The path is that of whoever set the device up; here another file may have it.
    (found.dev() == device && found.ino() == inode).then_some(Below { file, path })
}
