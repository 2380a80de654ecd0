//! A log file that never grows beyond a bound: the older half is kept beside it as `NAME.1`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that is moved to `NAME.1` and begun anew when it would exceed its limit.
///
/// It follows its folder when that is renamed only until the next rotation, so rotation goes by the
/// open file's present path.
#[derive(Debug)]
pub struct RotatingFile {
    file: File,
    written: u64,
    limit: u64,
}

impl RotatingFile {
    /// Begins `path`, mode 0600; at most `2 * limit` bytes are on disk.
    ///
    /// # Errors
    /// What opening it gives.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            file: open(path)?,
            written: 0,
            limit,
        })
    }

    /// The file as it is now, for `dup`.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn rotate(&mut self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let mut older = path.clone().into_os_string();
        older.push(".1");
        std::fs::rename(&path, PathBuf::from(older))?;
        self.file = open(&path)?;
        self.written = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            // A folder that is gone is no reason to lose the process that logs.
            let _ = self.rotate();
        }
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_bounded_and_the_newest_bytes_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        let mut file = RotatingFile::create(&path, 1000).unwrap();
        for i in 0..500 {
            writeln!(file, "line {i}").unwrap();
        }
        let newest = std::fs::read_to_string(&path).unwrap();
        let older = std::fs::read_to_string(temp.path().join("a.log.1")).unwrap();
        assert!(newest.len() <= 1000 && older.len() <= 1000);
        assert!(newest.ends_with("line 499\n"));
        assert!(!newest.starts_with("line 0\n"));
    }

    #[test]
    fn rotation_follows_a_renamed_folder() {
        let temp = tempfile::tempdir().unwrap();
        let (old, new) = (temp.path().join("old"), temp.path().join("new"));
        std::fs::create_dir(&old).unwrap();
        let mut file = RotatingFile::create(&old.join("a"), 4).unwrap();
        std::fs::rename(&old, &new).unwrap();
        file.write_all(b"1234").unwrap();
        file.write_all(b"5678").unwrap();
        assert_eq!(std::fs::read(new.join("a.1")).unwrap(), b"1234");
        assert_eq!(std::fs::read(new.join("a")).unwrap(), b"5678");
    }
}
