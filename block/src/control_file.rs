//! Faults by order of a file that is read again before every operation, for whoever wants to see what
//! a whole program does when its storage fails.
//!
//! Each line names a disk, an operation (`open`, `read`, `write`, `flush`, `discard`, `write-zeroes`,
//! `map`) and an effect: an error number's name, `EIO` or `ENOSPC`, or `hang`, which lasts until the
//! line is gone. Other lines mean nothing. This is a tool for tests and costs a system call for every
//! operation: nobody has it who does not ask for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Extent, Identity, Result, ZeroMode,
};

/// Longest file that is looked at.
const MAX_ORDERS: usize = 4096;
/// How often a hanging operation looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The file that orders faults.
#[derive(Debug, Clone)]
pub struct ControlFile {
    file: Arc<File>,
}

enum Effect {
    Fail(i32),
    Hang,
}

impl ControlFile {
    /// Takes orders from the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = Arc::new(File::open(path)?);
        Ok(Self { file })
    }

    /// What is ordered for an operation on a disk now. A file that cannot be read orders nothing.
    fn ordered(&self, disk: &str, operation: &str) -> Option<Effect> {
        let mut orders = [0; MAX_ORDERS];
        let len = self.file.read_at(&mut orders, 0).unwrap_or(0);
        let orders = std::str::from_utf8(&orders[..len]).unwrap_or_default();
        orders.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let fits = words.next() == Some(disk) && words.next() == Some(operation);
            match words.next().filter(|_| fits)? {
                "EIO" => Some(Effect::Fail(libc::EIO)),
                "ENOSPC" => Some(Effect::Fail(libc::ENOSPC)),
                "hang" => Some(Effect::Hang),
                _ => None,
            }
        })
    }

    /// Does to an operation what is ordered for it.
    fn obey(&self, disk: &str, operation: &str) -> io::Result<()> {
        loop {
            match self.ordered(disk, operation) {
                None => return Ok(()),
                Some(Effect::Fail(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                Some(Effect::Hang) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// What is ordered for the opening of disk `disk` at `path`.
    ///
    /// # Errors
    /// [`Error::Open`] when it is to fail.
    pub fn opening(&self, disk: &str, path: &Path) -> Result<()> {
        self.obey(disk, "open").map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
    }

    /// Lays the faults that are ordered for `disk` over its image.
    pub fn over(&self, disk: &str, inner: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(Layer {
            orders: self.clone(),
            disk: disk.to_owned(),
            inner,
        })
    }
}

/// An image that obeys.
struct Layer {
    orders: ControlFile,
    disk: String,
    inner: Arc<dyn BlockDevice>,
}

impl Layer {
    fn obey(&self, operation: &'static str, offset: u64, len: u64) -> Result<()> {
        let obeyed = self.orders.obey(&self.disk, operation);
        obeyed.map_err(|source| Error::Io {
            operation,
            path: PathBuf::from(self.inner.identity().name),
            offset,
            len,
            source,
        })
    }
}

impl BlockDevice for Layer {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn has_unflushed_writes(&self) -> bool {
        self.inner.has_unflushed_writes()
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.obey("read", offset, Buffer::total_len(buffers))?;
        self.inner.read(buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.obey("write", offset, Buffer::total_len(buffers))?;
        self.inner.write(buffers, offset, durability)?;
        match durability {
            Durability::Flushed => Ok(()),
            Durability::Immediate => self.obey("flush", offset, Buffer::total_len(buffers)),
        }
    }

    fn flush(&self) -> Result<()> {
        self.obey("flush", 0, self.size())?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.obey("discard", offset, len)?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.obey("write-zeroes", offset, len)?;
        self.inner.write_zeroes(offset, len, mode)
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.obey("map", offset, len)?;
        self.inner.extents(offset, len, limit)
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.inner.tell_arrivals(arrived);
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Content, RawImage};

    fn image(dir: &Path) -> Arc<dyn BlockDevice> {
        let path = dir.join("image");
        File::create(&path).unwrap().set_len(4096).unwrap();
        Arc::new(RawImage::open(&path, Access::ReadWrite, Content::Raw).unwrap())
    }

    #[test]
    fn operations_fail_while_the_file_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        std::fs::write(&path, "").unwrap();
        let orders = ControlFile::open(&path).unwrap();
        let disk = orders.over("data", image(dir.path()));
        disk.flush().unwrap();
        std::fs::write(&path, "other flush EIO\ndata flush ENOSPC\ndata open EIO\n").unwrap();
        let Err(Error::Io { source, .. }) = disk.flush() else {
            panic!("the flush must fail")
        };
        assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        assert!(orders.opening("data", &path).is_err());
        assert!(orders.opening("another", &path).is_ok());
        std::fs::write(&path, "").unwrap();
        disk.flush().unwrap();
    }

    #[test]
    fn operation_hangs_until_the_line_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        std::fs::write(&path, "data flush hang").unwrap();
        let disk = ControlFile::open(&path)
            .unwrap()
            .over("data", image(dir.path()));
        let (done, flushed) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || done.send(disk.flush().is_ok()));
        let early = flushed.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "it did not hang");
        std::fs::write(&path, "").unwrap();
        assert!(flushed.recv().unwrap());
        thread.join().unwrap().unwrap();
    }
}
