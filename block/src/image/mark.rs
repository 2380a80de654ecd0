//! Marks on the file of an image, which go with it: extended attributes.

use std::io;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::raw::RawImage;
use crate::{Error, Result};

/// Longest mark.
pub const MAX_MARK: usize = 4 << 10;

impl RawImage {
    /// Sets mark `name` (as `user.…`), durable when this returns; `false` where marks cannot be set: on some file systems,
    /// and on block devices.
    ///
    /// # Errors
    /// When the operating system fails.
    pub fn set_mark(&self, name: &str, value: &[u8]) -> Result<bool> {
        match rustix::fs::fsetxattr(self.file(), name, value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(errno) if is_unsupported(errno) => return Ok(false),
            Err(errno) => return Err(self.mark_error(errno)),
        }
        // Data that waits is not waited for: only the inode has changed.
        rustix::fs::fsync(self.file()).map_err(|errno| self.mark_error(errno))?;
        Ok(true)
    }

    /// Mark `name`, if it is set.
    ///
    /// # Errors
    /// When the operating system fails, or it is longer than [`MAX_MARK`].
    pub fn mark(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut value = vec![0; MAX_MARK];
        match rustix::fs::fgetxattr(self.file(), name, &mut value) {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(errno) if is_unsupported(errno) => Ok(None),
            Err(errno) => Err(self.mark_error(errno)),
        }
    }

    /// Removes mark `name`, if it is set.
    ///
    /// # Errors
    /// When the operating system fails.
    pub fn remove_mark(&self, name: &str) -> Result<()> {
        match rustix::fs::fremovexattr(self.file(), name) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) if is_unsupported(errno) => Ok(()),
            Err(errno) => Err(self.mark_error(errno)),
        }
    }

    fn mark_error(&self, errno: Errno) -> Error {
        Error::Mark {
            path: self.path().to_owned(),
            source: io::Error::from(errno),
        }
    }
}

fn is_unsupported(errno: Errno) -> bool {
    // A block device of devtmpfs refuses attributes of users by the second one, a read-only mount by the third.
    matches!(errno, Errno::NOTSUP | Errno::PERM | Errno::ROFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Content};

    #[test]
    fn a_mark_stays_with_the_file_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap();
        let image = open();
        assert_eq!(image.mark("user.vmm.test").unwrap(), None);
        image.remove_mark("user.vmm.test").unwrap();
        if !image.set_mark("user.vmm.test", b"one").unwrap() {
            println!("skipped: {} has no marks", dir.path().display());
            return;
        }
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        let again = RawImage::open(&moved, Access::ReadWrite, Content::Raw).unwrap();
        assert_eq!(again.mark("user.vmm.test").unwrap(), Some(b"one".to_vec()));
        again.remove_mark("user.vmm.test").unwrap();
        assert_eq!(image.mark("user.vmm.test").unwrap(), None);
    }
}
