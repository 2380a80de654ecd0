//! The folder of disk images: on a file system that is no memory, with room for them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{statfs, statvfs};

use super::super::error::BenchError;
use super::super::folder::Folder;

/// File systems whose files are memory: tmpfs and ramfs, by their magic numbers (statfs(2)).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The folder; removed with all images when it is dropped.
pub(crate) struct ImageFolder {
    folder: Folder,
    names: AtomicU32,
}

impl ImageFolder {
    /// A folder within `within`, or where temporary files lie, with room for `bytes`.
    ///
    /// # Errors
    /// When its files would be memory, which guests and the page cache are measured by, or have no room.
    pub fn new(within: Option<&Path>, bytes: u64) -> Result<Self, BenchError> {
        let within = within.map_or_else(std::env::temp_dir, Path::to_owned);
        let failed = |e: rustix::io::Errno| BenchError::Folder(within.clone(), e.into());
        if is_memory(statfs(&within).map_err(failed)?.f_type.cast_unsigned()) {
            return Err(BenchError::Option {
                name: "--images",
                range: "a folder on a file system that is no memory",
                value: within.display().to_string(),
            });
        }
        let space = statvfs(&within).map_err(failed)?;
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        if bytes > available {
            return Err(BenchError::Space {
                folder: within,
                wanted: bytes,
                available,
            });
        }
        Ok(Self {
            folder: Folder::within(&within)?,
            names: AtomicU32::new(0),
        })
    }

    /// A path in the folder that nothing else has: its name ends in `suffix`.
    pub fn path(&self, suffix: &str) -> PathBuf {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{number}.{suffix}"))
    }
}

fn is_memory(magic: u64) -> bool {
    IN_MEMORY.contains(&magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_where_there_is_room_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageFolder::new(Some(dir.path()), 4096).unwrap();
        let (one, other) = (images.path("raw"), images.path("raw"));
        assert_ne!(one, other);
        std::fs::write(one, b"x").unwrap();
        drop(images);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let Err(error) = ImageFolder::new(Some(dir.path()), u64::MAX) else {
            panic!("no disk is that large");
        };
        assert_eq!(error.id(), "host.space", "{error}");
    }

    #[test]
    fn memory_is_no_place_for_images() {
        assert!(is_memory(0x0102_1994) && !is_memory(0xef53));
        let shm = Path::new("/dev/shm");
        if !statfs(shm).is_ok_and(|fs| is_memory(fs.f_type.cast_unsigned())) {
            println!("skipped: /dev/shm is no tmpfs here");
            return;
        }
        let Err(error) = ImageFolder::new(Some(shm), 0) else {
            panic!("{} is memory", shm.display());
        };
        assert_eq!(error.id(), "usage.option", "{error}");
    }
}
