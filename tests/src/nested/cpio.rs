//! Writer of `newc` cpio archives, the format of a Linux initramfs.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.

use std::collections::BTreeSet;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive in the making; everything in it belongs to root.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory and those above it; one that is there already stays as it is.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return self;
        }
        self.parents(path);
        self.directories.insert(path.to_owned());
        self.entry(path, S_IFDIR | 0o755, (0, 0), &[]);
        self
    }

    /// Adds a regular file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, S_IFREG | mode, (0, 0), content);
        self
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, to: &str) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, S_IFLNK | 0o777, (0, 0), to.as_bytes());
        self
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[]);
        self
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let size = u32::try_from(content.len()).expect("a file in an initramfs is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is below 4 GiB");
        self.entries += 1;
        let (inode, links) = (self.entries, if mode & S_IFDIR == S_IFDIR { 2 } else { 1 });
        let fields = [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skip;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::new();
        archive.file("a", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header, name with its NUL and padding up to 112, then the content.
        assert_eq!(&bytes[112..117], b"12345");
        assert_eq!(&bytes[54..62], b"00000005");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn directories_come_once_and_before_what_they_hold() {
        let mut archive = Archive::new();
        archive.file("/a/b/c", 0o644, b"").file("a/b/d", 0o644, b"");
        let bytes = archive.finish();
        let names: Vec<_> = ["a\0", "a/b\0", "a/b/c\0", "a/b/d\0"]
            .iter()
            .map(|name| {
                bytes
                    .windows(name.len())
                    .position(|w| w == name.as_bytes())
                    .unwrap()
            })
            .collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn another_program_reads_the_archive() {
        let mut archive = Archive::new();
        archive
            .directory("dir")
            .file("dir/file", 0o755, b"content")
            .symlink("link", "dir/file");
        let dir = tempfile::tempdir().unwrap();
        let reader = Command::new("busybox")
            .args(["cpio", "-i"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut reader) = reader else {
            skip!("busybox is not installed")
        };
        reader
            .stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        assert!(reader.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("link")).unwrap(), b"content");
    }
}
