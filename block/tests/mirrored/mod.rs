//! A disk with a mirror, its writers, and what both images must hold in the end.
#![allow(dead_code)] // Each test file uses its part.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use block::copy::{Copy, Steering};
use block::fault::FaultLayer;
use block::mirror::Mirror;
use block::recorder::Recorder;
use block::tracker::{BLOCK, ChangeMap};
use block::{
    Access, BlockDevice, Buffer, Content, Durability, Error, RawImage, Result, SECTOR_SIZE,
    ZeroMode,
};
use tempfile::TempDir;

/// Not a multiple of a block, nor of a piece.
pub const SIZE: u64 = (6 << 20) + 5 * 512;
/// Longer than any test takes.
pub const LONG: Duration = Duration::from_secs(120);
const MUCH: u64 = 1 << 30;

pub fn made(path: &Path) -> Arc<dyn BlockDevice> {
    File::create(path).unwrap().set_len(SIZE).unwrap();
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

/// Both images, each below faults and a recorder, and the mirror.
pub struct Scene {
    pub dir: TempDir,
    pub source: Arc<Recorder>,
    pub source_faults: Arc<FaultLayer>,
    pub target: Arc<Recorder>,
    pub target_faults: Arc<FaultLayer>,
    pub mirror: Arc<Mirror>,
    pub copy: Copy,
    pub steering: Steering,
}

impl Scene {
    pub fn new() -> Self {
        Self::with(LONG)
    }

    pub fn with(patience: Duration) -> Self {
        Self::of(patience, 0)
    }

    /// Whose images are recorded.
    pub fn recorded() -> Self {
        Self::of(LONG, MUCH)
    }

    fn of(patience: Duration, recorded: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let over = |name: &str| {
            let recorder = Recorder::in_memory(made(&dir.path().join(name)), recorded);
            let recorder = Arc::new(recorder);
            (
                recorder.clone(),
                Arc::new(FaultLayer::new(recorder as Arc<dyn BlockDevice>)),
            )
        };
        let ((source, source_faults), (target, target_faults)) = (over("source"), over("target"));
        let missed = Arc::new(ChangeMap::new(SIZE));
        let mirror = Mirror::new(
            source_faults.clone(),
            target_faults.clone(),
            missed.clone(),
            patience,
            || {},
        );
        let mirror = Arc::new(mirror.unwrap());
        let mut copy = Copy::new(source_faults.clone(), target_faults.clone(), missed);
        copy.go_by(&mirror);
        Self {
            dir,
            source,
            source_faults,
            target,
            target_faults,
            mirror,
            copy,
            steering: Steering::new(None, Duration::ZERO),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// That both images hold the same.
    #[track_caller]
    pub fn is_mirrored(&self) {
        let [source, target] = ["source", "target"].map(|name| self.bytes(name));
        let differs = source.iter().zip(&target).position(|(a, b)| a != b);
        assert_eq!((source.len(), differs), (target.len(), None));
    }

    pub fn fill(&self, offset: u64, len: u64, value: u8) {
        let mut bytes = vec![value; len as usize];
        let buffers = [Buffer::new(&mut bytes)];
        self.source
            .write(&buffers, offset, Durability::Flushed)
            .unwrap();
    }
}

/// Does something until it has not to wait any more, as a device does with what is parked.
pub fn until_let_in<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match act() {
            Err(error) if error.is_for_now() => std::thread::yield_now(),
            result => return result,
        }
    }
}

/// Somebody who changes the disk in every way, anywhere, as fast as may be.
pub struct Writer {
    state: u64,
    number: u64,
    sequence: u64,
}

impl Writer {
    pub fn new(number: u64) -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1),
            number,
            sequence: 0,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    /// One change; each sector that is written says who wrote it, when and where.
    pub fn change(&mut self, disk: &dyn BlockDevice) -> Result<()> {
        let sectors = SIZE / SECTOR_SIZE;
        let at = self.draw(sectors);
        let most = 2 * BLOCK / SECTOR_SIZE;
        let count = (1 + self.draw(most)).min(sectors - at);
        let (offset, len) = (at * SECTOR_SIZE, count * SECTOR_SIZE);
        self.sequence += 1;
        let kind = self.draw(20);
        let mut bytes = Vec::new();
        for sector in at..at + count {
            for word in [self.number, self.sequence, sector]
                .into_iter()
                .cycle()
                .take(64)
            {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        until_let_in(|| match kind {
            0 => disk.discard(offset, len).map(drop),
            1 => disk.write_zeroes(offset, len, ZeroMode::MayUnmap),
            2 => disk.write_zeroes(offset, len, ZeroMode::KeepAllocated),
            3 => disk.flush(),
            4 => disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Immediate),
            _ => disk.write(&[Buffer::new(&mut bytes)], offset, Durability::Flushed),
        })
    }
}

/// Has several write at once until `act` has ended; how many changes they made, and how many of them failed.
pub fn while_written<T>(
    disk: &dyn BlockDevice,
    act: impl FnOnce(&AtomicU64) -> T,
) -> (T, u64, u64) {
    let stop = AtomicBool::new(false);
    let (made, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = std::thread::scope(|scope| {
        for number in 0..3 {
            let (stop, made, failed) = (&stop, &made, &failed);
            scope.spawn(move || {
                let mut writer = Writer::new(number);
                while !stop.load(Ordering::Relaxed) {
                    if writer.change(disk).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let done = act(&made);
        stop.store(true, Ordering::Relaxed);
        done
    });
    (done, made.into_inner(), failed.into_inner())
}

/// Waits until so many more changes were made.
pub fn some_more(made: &AtomicU64, count: u64) {
    let from = made.load(Ordering::Relaxed);
    while made.load(Ordering::Relaxed) < from + count {
        std::thread::yield_now();
    }
}

/// Whether the target was given up because it did not answer.
pub fn is_late(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}
