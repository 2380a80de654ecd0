//! The file that guest RAM lies in.
//!
//! Whether a memfd can have huge pages is a setting of the host for all shared memory
//! (`shmem_enabled`), which is `never` unless somebody changed it. A tmpfs has a setting of its own
//! (`huge=`, Linux `admin-guide/mm/transhuge`): in one that is attached nowhere, a mapping that asks
//! for huge pages gets them. Mounting needs rights that a confined process must not have, so the file
//! is made before; without them, or without that, RAM lies in a memfd.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use migration::vm::HugePages;
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, ftruncate, memfd_create, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Name under which RAM shows in `/proc`, whichever file it is.
const NAME: &str = "vmm-ram";

/// A file without a name that RAM will lie in; it has no size yet. Clones are the same file.
#[derive(Debug, Clone)]
pub struct RamFile(Option<Arc<File>>);

impl RamFile {
    /// A memfd, made when its size is known.
    pub fn memfd() -> Self {
        Self(None)
    }

    /// A file in a tmpfs of its own.
    ///
    /// # Errors
    /// When this process may not mount, or the kernel is older than 5.2.
    pub fn on_own_tmpfs() -> io::Result<Self> {
        on_own_tmpfs().map(|file| Self(Some(Arc::new(file.into()))))
    }

    /// How a mapping of it gets huge pages.
    pub(super) fn huge_pages(&self) -> HugePages {
        match self.0 {
            Some(_) => HugePages::ByAdvice,
            None => HugePages::ByCollapse,
        }
    }

    /// The file with `size` bytes; no page is touched.
    pub(super) fn sized(self, size: u64) -> io::Result<Arc<File>> {
        let file = match self.0 {
            Some(file) => file,
            None => Arc::new(memfd_create(NAME, MemfdFlags::CLOEXEC)?.into()),
        };
        ftruncate(&*file, size)?;
        Ok(file)
    }

    /// Frees what lies in the file, which nobody maps any more.
    pub(super) fn clear(&self) -> io::Result<()> {
        match &self.0 {
            Some(file) => Ok(ftruncate(&**file, 0)?),
            // It went with its last user.
            None => Ok(()),
        }
    }
}

fn on_own_tmpfs() -> io::Result<OwnedFd> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&tmpfs, "huge", "advise")?;
    // As large as the file is to be: the host's memory is the limit, as it is for a memfd.
    fsconfig_set_string(&tmpfs, "size", "0")?;
    fsconfig_create(&tmpfs)?;
    let root = fsmount(
        &tmpfs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let file = openat(
        &root,
        NAME,
        OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?;
    unlinkat(&root, NAME, AtFlags::empty())?;
    Ok(file)
}
