//! What the images of disks hold at some places, by which a destination tells a copy from the guest's disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use block::{BlockDevice, samples};
use serde::{Deserialize, Serialize};

use crate::threads::{self, ThreadKind};

/// Blocks of a disk that are chosen by chance, beside those that were written last.
const BY_CHANCE: u64 = 64;
/// Most blocks of a disk that are looked at.
const MAX_BLOCKS: usize = BY_CHANCE as usize + samples::REMEMBERED;
/// Longest that all disks together may take: the guest stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many blocks are read at a time: most of the time is spent waiting for storage.
const AT_ONCE: usize = 8;

/// Hashes of blocks of some disks, while their guest stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSamples {
    /// What the hashes were made with, 32 bytes: drawn for each occasion, so that no copy can be made to
    /// fit.
    key: [u8; 32],
    disks: Vec<DiskSample>,
}

/// Hashes of blocks of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSample {
    /// Which disk.
    pub(crate) id: String,
    /// Offset of a block in bytes, and the hash of what it holds.
    blocks: Vec<(u64, [u8; 8])>,
}

/// Why samples could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SampleError {
    /// A block could not be read.
    #[error(transparent)]
    Read(block::Error),
    /// The storage did not answer.
    #[error("the storage of a disk did not answer within {PATIENCE:?}")]
    Hangs,
    /// This host refused what it takes.
    #[error("prepare to read samples")]
    Prepare(#[source] io::Error),
}

/// An image, with the blocks of it that are looked at.
type Requested = (Arc<dyn BlockDevice>, Vec<u64>);

impl DiskSamples {
    /// Samples of these disks: identity, image, and where it was written last.
    ///
    /// # Errors
    /// When they cannot be read in time.
    pub(crate) fn take(
        disks: Vec<(String, Arc<dyn BlockDevice>, Vec<u64>)>,
    ) -> Result<Self, SampleError> {
        let key = random()?;
        let mut ids = Vec::new();
        let mut requested: Vec<Requested> = Vec::new();
        for (id, image, last) in disks {
            let offsets = by_chance(&*image)?.chain(last).collect::<BTreeSet<_>>();
            ids.push(id);
            requested.push((image, offsets.into_iter().collect()));
        }
        let hashes = read(key, requested.clone())?;
        let disks = ids.into_iter().zip(requested).zip(hashes);
        Ok(Self {
            key,
            disks: disks
                .map(|((id, (_, offsets)), hashes)| DiskSample {
                    id,
                    blocks: offsets.into_iter().zip(hashes).collect(),
                })
                .collect(),
        })
    }

    /// The sample of disk `id`, if there is one, and it is within bounds.
    pub(crate) fn of(&self, id: &str) -> Option<&DiskSample> {
        let sample = self.disks.iter().find(|sample| sample.id == id)?;
        (sample.blocks.len() <= MAX_BLOCKS).then_some(sample)
    }

    /// The first block of each of these images that does not hold what its sample says, if there is one.
    ///
    /// # Errors
    /// When they cannot be read in time.
    pub(crate) fn differences(
        &self,
        images: Vec<(&DiskSample, Arc<dyn BlockDevice>)>,
    ) -> Result<Vec<Option<u64>>, SampleError> {
        let requested = images.iter().map(|(sample, image)| {
            let offsets = sample.blocks.iter().map(|&(offset, _)| offset).collect();
            (image.clone(), offsets)
        });
        let hashes = read(self.key, requested.collect())?;
        let samples = images.iter().zip(hashes);
        Ok(samples
            .map(|((sample, _), hashes)| {
                let mut blocks = sample.blocks.iter().zip(hashes);
                let differs = blocks.find(|((_, there), here)| there != here);
                differs.map(|(&(offset, _), _)| offset)
            })
            .collect())
    }
}

fn random<const N: usize>() -> Result<[u8; N], SampleError> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| SampleError::Prepare(e.into()))?;
    Ok(bytes)
}

/// Offsets of blocks of `image`, any as likely as any other; all of a small one.
fn by_chance(image: &dyn BlockDevice) -> Result<Box<dyn Iterator<Item = u64>>, SampleError> {
    let blocks = image.size() / samples::BLOCK;
    if blocks <= BY_CHANCE {
        return Ok(Box::new((0..blocks).map(|block| block * samples::BLOCK)));
    }
    let drawn: [u8; BY_CHANCE as usize * 8] = random()?;
    Ok(Box::new((0..BY_CHANCE as usize).map(move |i| {
        let mut number = [0; 8];
        number.copy_from_slice(&drawn[i * 8..][..8]);
        u64::from_le_bytes(number) % blocks * samples::BLOCK
    })))
}

/// Hashes of all blocks, as they were asked for. A few threads read at a time; one that hangs is left
/// behind.
fn read(key: [u8; 32], requested: Vec<Requested>) -> Result<Vec<Vec<[u8; 8]>>, SampleError> {
    let mut hashes: Vec<Vec<[u8; 8]>> = requested
        .iter()
        .map(|(_, offsets)| vec![[0; 8]; offsets.len()])
        .collect();
    let places = requested
        .iter()
        .enumerate()
        .flat_map(|(disk, (_, offsets))| {
            let offsets = offsets.iter().enumerate();
            offsets.map(move |(at, &offset)| (disk, at, offset))
        });
    let places: Vec<(usize, usize, u64)> = places.collect();
    let (work, next) = (Arc::new((requested, places)), Arc::new(AtomicUsize::new(0)));
    let count = work.1.len();
    let (send, read) = channel();
    for _ in 0..AT_ONCE.min(count) {
        let (work, next, send) = (work.clone(), next.clone(), send.clone());
        thread::Builder::new()
            .name("disk-samples".into())
            .spawn(move || {
                threads::begin(ThreadKind::Disk);
                while let Some(&(disk, at, offset)) =
                    work.1.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let hash = samples::hash(&*work.0[disk].0, &key, offset);
                    if send.send((disk, at, hash)).is_err() {
                        return;
                    }
                }
            })
            .map_err(SampleError::Prepare)?;
    }
    let until = Instant::now() + PATIENCE;
    for _ in 0..count {
        let left = until.saturating_duration_since(Instant::now());
        let (disk, at, hash) = read.recv_timeout(left).map_err(|_| SampleError::Hangs)?;
        hashes[disk][at] = hash.map_err(SampleError::Read)?;
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use block::{Access, Content, RawImage};

    use super::*;

    fn image(path: &Path) -> Arc<dyn BlockDevice> {
        Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
    }

    #[test]
    fn a_copy_is_told_by_the_block_that_was_written_since() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, copy) = (dir.path().join("disk"), dir.path().join("copy"));
        let file = File::create(&disk).unwrap();
        // So large that chance does not find the block.
        file.set_len(1 << 40).unwrap();
        File::create(&copy).unwrap().set_len(1 << 40).unwrap();
        let written = (1 << 39) + samples::BLOCK;
        let sampled = |last| {
            let taken = DiskSamples::take(vec![("data".into(), image(&disk), last)]).unwrap();
            let text = serde_json::to_string(&taken).unwrap();
            serde_json::from_str::<DiskSamples>(&text).unwrap()
        };
        let differs = |samples: &DiskSamples, path| {
            let sample = samples.of("data").unwrap();
            samples.differences(vec![(sample, image(path))]).unwrap()[0]
        };
        let before = sampled(Vec::new());
        assert_eq!(differs(&before, &copy), None);
        file.write_all_at(&[1], written + 7).unwrap();
        let since = sampled(vec![written]);
        assert_eq!(differs(&since, &disk), None);
        assert_eq!(differs(&since, &copy), Some(written));
        assert!(since.of("other").is_none());
    }

    #[test]
    fn all_of_a_small_image_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path)
            .unwrap()
            .set_len(3 * 4096 + 512)
            .unwrap();
        let taken = DiskSamples::take(vec![("data".into(), image(&path), vec![4096])]).unwrap();
        let blocks = &taken.of("data").unwrap().blocks;
        let offsets: Vec<u64> = blocks.iter().map(|&(offset, _)| offset).collect();
        assert_eq!(offsets, [0, 4096, 8192]);
    }

    #[test]
    fn more_blocks_than_are_ever_sent_are_no_sample() {
        let sample = DiskSample {
            id: "data".into(),
            blocks: vec![(0, [0; 8]); MAX_BLOCKS + 1],
        };
        let samples = DiskSamples {
            key: [0; 32],
            disks: vec![sample],
        };
        assert!(samples.of("data").is_none());
    }
}
