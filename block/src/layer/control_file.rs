//! Faults by order of a file that is read again before every operation, for whoever wants to see what
//! a whole program does when its storage fails.
//!
//! Each line names a disk, an operation (`open`, `read`, `write`, `flush`, `discard`, `write-zeroes`,
//! `map`) and an effect: an error number's name, `EIO` or `ENOSPC`; `short`, as if the image ended where the
//! operation begins; `slow=MS`, so many milliseconds; or `hang`, which lasts until the line is gone. A fourth word,
//! `OFFSET+LEN`, is for operations that touch these bytes alone. Other lines mean nothing. This is a tool for tests and costs a system call for every
//! operation: nobody has it who does not ask for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::pass_on::Layer;
use crate::{BlockDevice, Buffer, Discarded, Durability, Error, Extent, Result, ZeroMode};

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
    Short,
    Slow(Duration),
    Hang,
}

impl Effect {
    fn read(word: &str) -> Option<Self> {
        match word {
            "EIO" => Some(Self::Fail(libc::EIO)),
            "ENOSPC" => Some(Self::Fail(libc::ENOSPC)),
            "short" => Some(Self::Short),
            "hang" => Some(Self::Hang),
            slow => {
                let delay = slow.strip_prefix("slow=")?.parse().ok()?;
                Some(Self::Slow(Duration::from_millis(delay)))
            }
        }
    }
}

/// Why an operation fails.
enum Failure {
    Os(io::Error),
    Short,
}

/// Bytes that an operation touches; none is for all of the disk, which an opening is.
type Place = Option<(u64, u64)>;

/// Whether an operation at `place` touches what `word` says, a word of the form `OFFSET+LEN`.
fn touches(word: &str, place: Place) -> bool {
    let numbers = word
        .split_once('+')
        .and_then(|(offset, len)| Some((offset.parse().ok()?, len.parse().ok()?)));
    let Some((from, len)): Place = numbers else {
        return false;
    };
    place.is_none_or(|(offset, bytes)| {
        offset < from.saturating_add(len) && from < offset.saturating_add(bytes.max(1))
    })
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
    fn ordered(&self, disk: &str, operation: &str, place: Place) -> Option<Effect> {
        let mut orders = [0; MAX_ORDERS];
        let len = self.file.read_at(&mut orders, 0).unwrap_or(0);
        let orders = std::str::from_utf8(&orders[..len]).unwrap_or_default();
        orders.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let fits = words.next() == Some(disk) && words.next() == Some(operation);
            let effect = Effect::read(words.next().filter(|_| fits)?)?;
            let here = words.next().is_none_or(|word| touches(word, place));
            here.then_some(effect)
        })
    }

    /// Does to an operation what is ordered for it.
    fn obey(&self, disk: &str, operation: &str, place: Place) -> std::result::Result<(), Failure> {
        loop {
            match self.ordered(disk, operation, place) {
                None => return Ok(()),
                Some(Effect::Fail(errno)) => {
                    return Err(Failure::Os(io::Error::from_raw_os_error(errno)));
                }
                Some(Effect::Short) => return Err(Failure::Short),
                Some(Effect::Slow(delay)) => {
                    std::thread::sleep(delay);
                    return Ok(());
                }
                Some(Effect::Hang) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// What is ordered for the opening of disk `disk` at `path`.
    ///
    /// # Errors
    /// [`Error::Open`] when it is to fail.
    pub fn opening(&self, disk: &str, path: &Path) -> Result<()> {
        let path = path.to_owned();
        self.obey(disk, "open", None)
            .map_err(|failure| match failure {
                Failure::Os(source) => Error::Open { path, source },
                Failure::Short => Error::Empty { path },
            })
    }

    /// Lays the faults that are ordered for `disk` over its image.
    pub fn over(&self, disk: &str, inner: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(self.layer(disk, inner))
    }

    /// As [`ControlFile::over`], for a stack of layers.
    pub fn layer(&self, disk: &str, inner: Arc<dyn BlockDevice>) -> Obedient {
        Obedient {
            orders: self.clone(),
            disk: disk.to_owned(),
            inner,
        }
    }
}

/// An image that does what a [`ControlFile`] orders.
pub struct Obedient {
    orders: ControlFile,
    disk: String,
    inner: Arc<dyn BlockDevice>,
}

impl Obedient {
    fn obey(&self, operation: &'static str, offset: u64, len: u64) -> Result<()> {
        let obeyed = self.orders.obey(&self.disk, operation, Some((offset, len)));
        let path = || PathBuf::from(self.inner.identity().name);
        obeyed.map_err(|failure| match failure {
            Failure::Os(source) => Error::Io {
                operation,
                path: path(),
                offset,
                len,
                source,
            },
            Failure::Short => Error::Short {
                path: path(),
                offset,
            },
        })
    }
}

impl Layer for Obedient {
    const NAME: &'static str = "fault";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
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
        self.obey("flush", 0, self.inner.size())?;
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

    fn laid(orders: &ControlFile, dir: &Path) -> Arc<dyn BlockDevice> {
        orders.over("data", image(dir))
    }

    #[test]
    fn operations_fail_while_the_file_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        std::fs::write(&path, "").unwrap();
        let orders = ControlFile::open(&path).unwrap();
        let disk = laid(&orders, dir.path());
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
    fn operations_are_hit_where_the_file_says_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        std::fs::write(
            &path,
            "data read short 512+1024\ndata discard EIO elsewhere",
        )
        .unwrap();
        let disk = laid(&ControlFile::open(&path).unwrap(), dir.path());
        let mut bytes = [0; 512];
        let hit: Vec<bool> = (0..4)
            .map(|sector| disk.read(&[Buffer::new(&mut bytes)], sector * 512))
            .map(|result| matches!(result, Err(Error::Short { .. })))
            .collect();
        assert_eq!(hit, [false, true, true, false]);
        disk.discard(0, 512).unwrap();
        std::fs::write(&path, "data write slow=20").unwrap();
        let began = std::time::Instant::now();
        let written = disk.write(&[Buffer::new(&mut bytes)], 0, Durability::Flushed);
        written.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20), "not slowed");
    }

    #[test]
    fn operation_hangs_until_the_line_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders");
        std::fs::write(&path, "data flush hang").unwrap();
        let disk = laid(&ControlFile::open(&path).unwrap(), dir.path());
        let (done, flushed) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || done.send(disk.flush().is_ok()));
        let early = flushed.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "it did not hang");
        std::fs::write(&path, "").unwrap();
        assert!(flushed.recv().unwrap());
        thread.join().unwrap().unwrap();
    }
}
