//! Images with known allocation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::image::qcow2::create::{DEFAULT_CLUSTER_BITS, NewImage, create};
use block::image::qcow2::{BackingRules, Qcow2Image};
use block::{Access, BlockDevice, Buffer, Durability};
use rustix::fs::{Advice, fadvise};

use super::super::error::BenchError;
use super::super::interrupt;
use super::super::mapping::Xorshift;

/// Bytes written at once.
const CHUNK: u64 = 1 << 20;
/// Most bytes of data between two holes.
const STRETCH: u64 = 16 << 20;
/// Seed of what images hold: the same in each, as two disks of one guest are never compared.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// How a file holds the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFormat {
    /// As it is.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl DiskFormat {
    /// The word that this engine and QEMU have for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The image of a disk; removed when it is dropped.
pub(crate) struct DiskImage {
    path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

impl DiskImage {
    /// Makes an image of `bytes` at `path`, half or all of which hold `allocated` bytes of data that no
    /// compression makes less of: half in stretches of [`DiskImage::stretch`] between holes as long.
    pub fn make(
        path: PathBuf,
        format: DiskFormat,
        bytes: u64,
        allocated: u64,
    ) -> Result<Self, BenchError> {
        let image = Self { path, format };
        let places = places(bytes, allocated);
        match format {
            DiskFormat::Raw => raw(&image.path, bytes, places),
            DiskFormat::Qcow2 => qcow2(&image.path, bytes, places),
        }
        .map_err(|e| BenchError::Disk(image.path.clone(), e))?;
        interrupt::check()?;
        Ok(image)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of data at the beginning before the first hole, of a disk of `bytes`.
    pub fn stretch(bytes: u64) -> u64 {
        (bytes / 4).clamp(CHUNK, STRETCH)
    }
}

impl Drop for DiskImage {
    fn drop(&mut self) {
        // It goes with its folder otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Has the kernel write back what it holds of a file, and forget it: reads come from the disk then.
pub(super) fn cool(path: &Path) -> Result<(), BenchError> {
    let forget = || {
        let file = File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(io::Error::from)
    };
    forget().map_err(|e| BenchError::Disk(path.to_owned(), e))
}

/// The chunks of a disk that hold data.
fn places(bytes: u64, allocated: u64) -> impl Iterator<Item = u64> {
    let stretch = DiskImage::stretch(bytes);
    let every = if allocated < bytes { 2 } else { 1 };
    (0..bytes / CHUNK)
        .map(|chunk| chunk * CHUNK)
        .filter(move |place| (place / stretch).is_multiple_of(every))
        .take(usize::try_from(allocated / CHUNK).unwrap_or(usize::MAX))
}

/// Fills `chunk` with what was never there before.
fn refill(random: &mut Xorshift, chunk: &mut [u8]) {
    for word in chunk.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

fn raw(path: &Path, bytes: u64, places: impl Iterator<Item = u64>) -> io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(bytes)?;
    let (mut random, mut chunk) = (Xorshift(SEED), vec![0; CHUNK as usize]);
    for place in places {
        if interrupt::requested() {
            return Ok(());
        }
        refill(&mut random, &mut chunk);
        file.write_all_at(&chunk, place)?;
    }
    file.sync_all()
}

fn qcow2(path: &Path, bytes: u64, places: impl Iterator<Item = u64>) -> io::Result<()> {
    let wanted = NewImage {
        size: bytes,
        cluster_bits: DEFAULT_CLUSTER_BITS,
        backing: None,
    };
    create(path, &wanted).map_err(io::Error::other)?;
    let image = Qcow2Image::open(path, Access::ReadWrite, &BackingRules::default())
        .map_err(io::Error::other)?;
    let _claim = image.claim().map_err(io::Error::other)?;
    image.begin_use().map_err(io::Error::other)?;
    let (mut random, mut chunk) = (Xorshift(SEED), vec![0; CHUNK as usize]);
    for place in places {
        if interrupt::requested() {
            return Ok(());
        }
        refill(&mut random, &mut chunk);
        image
            .write(&[Buffer::new(&mut chunk)], place, Durability::Flushed)
            .map_err(io::Error::other)?;
    }
    image.flush().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn half_of_a_disk_or_all_of_it_holds_data() {
        let mib = 1 << 20;
        let half: Vec<_> = places(8 * mib, 4 * mib).map(|place| place / mib).collect();
        assert_eq!(half, [0, 1, 4, 5]);
        assert_eq!(places(8 * mib, 8 * mib).count(), 8);
        assert_eq!(DiskImage::stretch(8 * mib), 2 * mib);
        assert_eq!(DiskImage::stretch(4 << 30), STRETCH);
    }

    #[test]
    fn an_image_has_the_size_and_the_data_that_it_should_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let path = dir.path().join(format.word());
            let image = DiskImage::make(path.clone(), format, 8 << 20, 4 << 20).unwrap();
            let file = std::fs::metadata(image.path()).unwrap();
            assert!(file.blocks() * 512 >= 4 << 20, "{format:?}");
            assert!(file.blocks() * 512 < 8 << 20, "{format:?}");
            cool(&path).unwrap();
            drop(image);
            assert!(!path.exists());
        }
    }
}
