//! Pairs of the same writes, with and without the tracker, each half as often first.

use std::sync::Arc;

use block::tracker::{ChangeMap, Tracker};
use block::{Access, BlockDevice, Buffer, Content, Durability, RawImage};
use rustix::time::{ClockId, clock_gettime};

use super::super::disks::{DiskFormat, DiskImage, ImageFolder};
use super::super::error::BenchError;
use super::super::interrupt;
use super::super::mapping::Xorshift;
use super::super::progress::progress;
use super::figures::TrackingFigures;

/// Bytes of the disk: all of it is in the page cache.
const BYTES: u64 = 64 << 20;
/// Bytes of a write.
const REQUEST: u64 = 4096;
/// Writes of each half of a pair.
const REQUESTS: u64 = 16_384;
/// Pairs.
const PAIRS: u64 = 60;
/// Space that the image needs.
pub(crate) const NEEDED_SPACE: u64 = BYTES;

/// Memory that a run needs at once.
pub(crate) fn needed_memory() -> u64 {
    BYTES
}

/// Measures the block layer that this benchmark was built with.
///
/// # Errors
/// When the image cannot be made or written.
pub(crate) fn measure(images: &ImageFolder) -> Result<Option<TrackingFigures>, BenchError> {
    progress(format_args!("{}: {PAIRS} pairs", TrackingFigures::NAME));
    let file = DiskImage::make(images.path("raw"), DiskFormat::Raw, BYTES, BYTES)?;
    let failed = |e| BenchError::Disk(file.path().to_owned(), std::io::Error::other(e));
    let image = RawImage::open(file.path(), Access::ReadWrite, Content::Raw).map_err(failed)?;
    let _claim = image.claim().map_err(failed)?;
    image.begin_use().map_err(failed)?;
    let image: Arc<dyn BlockDevice> = Arc::new(image);
    let map = Arc::new(ChangeMap::new(BYTES));
    let tracked = Tracker::new(Arc::clone(&image), Arc::clone(&map));
    let half = |device: &dyn BlockDevice, pair| {
        interrupt::check()?;
        // As each pass of a copy does.
        map.begin_generation();
        cpu_us(device, pair).map_err(failed)
    };
    // What is touched for the first time is not what is measured.
    half(&*image, 0)?;
    half(&tracked, 0)?;
    let mut pairs = Vec::new();
    for pair in 1..=PAIRS {
        let gave = if pair.is_multiple_of(2) {
            (half(&*image, pair)?, half(&tracked, pair)?)
        } else {
            let with = half(&tracked, pair)?;
            (half(&*image, pair)?, with)
        };
        pairs.push(gave);
    }
    Ok(TrackingFigures::new(REQUEST, REQUESTS, &pairs))
}

/// CPU microseconds of this thread for a write: the same places for the same `seed`.
fn cpu_us(device: &dyn BlockDevice, seed: u64) -> block::Result<f64> {
    let mut random = Xorshift(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut data = [0x5a; REQUEST as usize];
    let before = thread_ns();
    for _ in 0..REQUESTS {
        let place = random.next() % (BYTES / REQUEST) * REQUEST;
        device.write(&[Buffer::new(&mut data)], place, Durability::Flushed)?;
    }
    Ok((thread_ns() - before) / 1000.0 / REQUESTS as f64)
}

fn thread_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
