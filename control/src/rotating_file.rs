//! A log file that never grows beyond a bound: the older half is kept beside it as `NAME.1`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// A file that is copied to `NAME.1` and begun anew when it would exceed its limit.
///
/// Both files are open from the beginning: whoever writes, perhaps a thread that may open nothing, can
/// do so, and a folder that is renamed meanwhile does not matter.
#[derive(Debug)]
pub struct RotatingFile {
    file: File,
    older: File,
    written: u64,
    limit: u64,
}

impl RotatingFile {
    /// Begins `path`, mode 0600, or goes on with it; at most `2 * limit` bytes are on disk, unless there
    /// were more before.
    ///
    /// # Errors
    /// What opening it, or its older half, gives.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let mut older = path.to_owned().into_os_string();
        older.push(".1");
        let mut options = OpenOptions::new();
        options.read(true).create(true).mode(0o600);
        let file = options.clone().append(true).open(path)?;
        Ok(Self {
            written: file.metadata()?.len(),
            file,
            older: options.write(true).truncate(false).open(older)?,
            limit,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let copied = self.keep();
        // Bounded also where there was no room for the copy.
        self.file.set_len(0)?;
        self.written = 0;
        copied
    }

    fn keep(&self) -> io::Result<()> {
        self.older.set_len(0)?;
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        loop {
            let len = self.file.read_at(&mut piece, at)?;
            if len == 0 {
                return Ok(());
            }
            self.older.write_all_at(&piece[..len], at)?;
            at += len as u64;
        }
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            // A full disk is no reason to lose the process that logs.
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
