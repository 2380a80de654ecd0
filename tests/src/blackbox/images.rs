//! Kernels and disks that no machine can use, and one disk that it can.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn written(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// A text file.
pub fn text(dir: &Path) -> PathBuf {
    written(
        dir,
        "kernel.txt",
        "not a kernel, only a letter to a friend\n"
            .repeat(200)
            .as_bytes(),
    )
}

/// Nothing.
pub fn empty(dir: &Path) -> PathBuf {
    written(dir, "empty", b"")
}

/// The head of a 32-bit ELF program.
pub fn elf32(dir: &Path) -> PathBuf {
    let mut bytes = vec![0_u8; 4096];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1, 1, 1]);
    bytes[16..20].copy_from_slice(&[2, 0, 3, 0]);
    written(dir, "elf32", &bytes)
}

/// A 64-bit ELF program with one loadable segment and no note that says how to boot it.
pub fn elf_without_note(dir: &Path) -> PathBuf {
    let mut bytes = vec![0_u8; 8192];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let put16 = |bytes: &mut Vec<u8>, at: usize, v: u16| {
        bytes[at..at + 2].copy_from_slice(&v.to_le_bytes());
    };
    let put32 = |bytes: &mut Vec<u8>, at: usize, v: u32| {
        bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
    };
    let put64 = |bytes: &mut Vec<u8>, at: usize, v: u64| {
        bytes[at..at + 8].copy_from_slice(&v.to_le_bytes());
    };
    put16(&mut bytes, 16, 2);
    put16(&mut bytes, 18, 62);
    put32(&mut bytes, 20, 1);
    put64(&mut bytes, 24, 0x10_0000);
    put64(&mut bytes, 32, 64);
    put16(&mut bytes, 52, 64);
    put16(&mut bytes, 54, 56);
    put16(&mut bytes, 56, 1);
    // The segment: read and execute, 4 KiB from the second page of the file to 1 MiB.
    put32(&mut bytes, 64, 1);
    put32(&mut bytes, 68, 5);
    put64(&mut bytes, 72, 4096);
    put64(&mut bytes, 80, 0x10_0000);
    put64(&mut bytes, 88, 0x10_0000);
    put64(&mut bytes, 96, 4096);
    put64(&mut bytes, 104, 4096);
    put64(&mut bytes, 112, 4096);
    written(dir, "elf-without-note", &bytes)
}

/// The first part of `whole`.
pub fn truncated(whole: &Path, dir: &Path, length: usize) -> PathBuf {
    let bytes = fs::read(whole).unwrap_or_else(|e| panic!("{}: {e}", whole.display()));
    assert!(
        bytes.len() > length,
        "{} is too short to truncate",
        whole.display()
    );
    written(dir, "truncated", &bytes[..length])
}

/// A file of holes with this length.
pub fn sparse(dir: &Path, name: &str, length: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path)
        .and_then(|file| file.set_len(length))
        .expect("sparse file");
    path
}

/// The file that tells what the image lacks, where one is begun with before it is whole.
pub fn map_of(image: &Path) -> PathBuf {
    PathBuf::from(format!("{}.vmm-map", image.display()))
}
