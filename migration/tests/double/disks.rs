//! Disks that travel, made up: the guest's own marks in its blocks tell what it wrote last.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use migration::observation::{Observation, Side};
use migration::vm::{
    BLOCK_SIZE, Behind, DestinationVolume, HeldBefore, RestOfVolume, SourceVolume, VmResult,
    VolumeOffer, Wish,
};

/// What is done with a disk while it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Map,
    Read,
    TakeChanges,
    Write,
    WriteZeroes,
    /// Of what it held before.
    MapBefore,
    ReadBefore,
    Flush,
    Lack,
}

/// A disk in memory. Sectors that were never written, or were zeroed, hold no data.
pub struct MemoryDisk {
    id: String,
    pub wish: Mutex<Wish>,
    pub behind: Mutex<Vec<Behind>>,
    content: Mutex<Content>,
    /// Reads and writes fail.
    pub broken: AtomicBool,
    /// What fails, once, after it was done so many times.
    fault: Mutex<Option<(Operation, usize)>>,
    /// How much of what the guest has changed waits for the link, and whoever waits for that.
    backlog: Mutex<Backlog>,
    let_in: Condvar,
    /// It changes a byte of what it writes, whatever it says.
    pub damages: AtomicBool,
    /// It held something before it was to be a guest's.
    held_before: AtomicBool,
    /// A rest of it may be fetched later.
    pub may_lack: AtomicBool,
    /// What it was told to lack, and how often.
    lacks: Mutex<Vec<Vec<u64>>>,
}

#[derive(Default)]
struct Backlog {
    let_in: u64,
    carried: u64,
    most: Option<u64>,
    waits_since: Option<Instant>,
    /// Each that it was given.
    bounds: Vec<Option<u64>>,
}

impl Backlog {
    fn is_full(&self) -> bool {
        self.most
            .is_some_and(|most| self.let_in - self.carried > most)
    }
}

struct Content {
    bytes: Vec<u8>,
    /// Sectors that storage was given.
    allocated: Vec<bool>,
    /// Blocks that were written since they were last asked for; nothing while nobody tracks them.
    marks: Option<Vec<bool>>,
    /// All that was written so far is durable.
    flushed: bool,
}

const SECTOR: usize = 512;

impl MemoryDisk {
    pub fn new(id: &str, size: usize) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            wish: Mutex::default(),
            behind: Mutex::default(),
            content: Mutex::new(Content {
                bytes: vec![0; size],
                allocated: vec![false; size / SECTOR],
                marks: None,
                flushed: true,
            }),
            broken: AtomicBool::new(false),
            fault: Mutex::new(None),
            backlog: Mutex::default(),
            let_in: Condvar::new(),
            damages: AtomicBool::new(false),
            held_before: AtomicBool::new(false),
            may_lack: AtomicBool::new(false),
            lacks: Mutex::default(),
        })
    }

    /// One that holds `bytes`, with storage for all of them, as an image that somebody has copied.
    pub fn holding(id: &str, bytes: &[u8]) -> Arc<Self> {
        let this = Self::new(id, bytes.len());
        this.with(|content| content.put(0, bytes));
        this.held_before.store(true, Ordering::SeqCst);
        this
    }

    /// Has `operation` fail once, after it was done `times` times.
    pub fn fail_after(&self, (operation, times): (Operation, usize)) {
        *self.fault.lock().unwrap() = Some((operation, times));
    }

    /// Whether what was to fail has not come yet.
    pub fn is_still_to_fail(&self) -> bool {
        self.fault.lock().unwrap().is_some()
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Content) -> T) -> T {
        use_it(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, operation: Operation) -> VmResult<()> {
        let mut fault = self.fault.lock().unwrap();
        let fails = match &mut *fault {
            Some((of, 0)) if *of == operation => {
                *fault = None;
                true
            }
            Some((of, times)) if *of == operation => {
                *times -= 1;
                false
            }
            _ => false,
        };
        match fails || self.broken.load(Ordering::SeqCst) {
            true => Err(Observation::new(Side::Source, "disk.io", "it is broken")),
            false => Ok(()),
        }
    }

    /// As the guest writes: the blocks are marked first.
    pub fn guest_writes(&self, offset: usize, bytes: &[u8]) {
        self.change_backlog(|backlog| backlog.let_in += BLOCK_SIZE);
        self.with(|content| {
            content.mark(offset, bytes.len());
            content.put(offset, bytes);
        });
    }

    /// As [`MemoryDisk::guest_writes`] of one block, for which there has to be room in the backlog; whether it was written
    /// within `patience`.
    pub fn guest_writes_in_turn(&self, offset: usize, bytes: &[u8], patience: Duration) -> bool {
        let mut backlog = self.backlog.lock().unwrap();
        if backlog.is_full() {
            backlog.waits_since.get_or_insert_with(Instant::now);
        }
        let (backlog, waited) = self
            .let_in
            .wait_timeout_while(backlog, patience, |backlog| backlog.is_full())
            .unwrap();
        if waited.timed_out() {
            return false;
        }
        drop(backlog);
        self.guest_writes(offset, bytes);
        true
    }

    /// Each bound that it was given.
    pub fn bounds(&self) -> Vec<Option<u64>> {
        self.backlog.lock().unwrap().bounds.clone()
    }

    fn change_backlog(&self, change: impl FnOnce(&mut Backlog)) {
        let mut backlog = self.backlog.lock().unwrap();
        change(&mut backlog);
        if !backlog.is_full() {
            backlog.waits_since = None;
        }
        self.let_in.notify_all();
    }

    /// As the guest discards.
    pub fn guest_discards(&self, range: Range<usize>) {
        self.change_backlog(|backlog| backlog.let_in += BLOCK_SIZE);
        self.with(|content| {
            content.mark(range.start, range.len());
            content.zero(range);
        });
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.with(|content| content.bytes.clone())
    }

    /// Bytes that storage was given.
    pub fn allocated(&self) -> usize {
        self.with(|content| content.allocated.iter().filter(|&&is| is).count() * SECTOR)
    }

    /// What it was told to lack, each time that it was.
    pub fn lacks(&self) -> Vec<Vec<u64>> {
        self.lacks.lock().unwrap().clone()
    }

    pub fn track(&self) {
        self.with(|content| {
            let blocks = content.bytes.len().div_ceil(BLOCK_SIZE as usize);
            content.marks = Some(vec![false; blocks]);
        });
    }

    pub fn untrack(&self) {
        self.with(|content| content.marks = None);
    }

    pub fn is_tracked(&self) -> bool {
        self.with(|content| content.marks.is_some())
    }

    pub fn is_flushed(&self) -> bool {
        self.with(|content| content.flushed)
    }
}

impl Content {
    fn mark(&mut self, offset: usize, len: usize) {
        let block = BLOCK_SIZE as usize;
        if let Some(marks) = &mut self.marks {
            marks[offset / block..(offset + len).div_ceil(block)].fill(true);
        }
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.flushed = false;
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.allocated[offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR)].fill(true);
    }

    fn stored(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let sectors = range.start / SECTOR as u64..range.end / SECTOR as u64;
        let held = sectors.filter(|&sector| self.allocated[sector as usize]);
        held.map(|sector| sector * SECTOR as u64..(sector + 1) * SECTOR as u64)
            .collect()
    }

    fn get(&self, offset: u64, into: &mut [u8]) {
        let at = offset as usize;
        into.copy_from_slice(&self.bytes[at..at + into.len()]);
    }

    fn zero(&mut self, range: Range<usize>) {
        self.flushed = false;
        self.bytes[range.clone()].fill(0);
        self.allocated[range.start / SECTOR..range.end / SECTOR].fill(false);
    }
}

impl SourceVolume for MemoryDisk {
    fn offer(&self) -> VolumeOffer {
        VolumeOffer {
            id: self.id.clone(),
            size: self.bytes().len() as u64,
            allocated: self.allocated() as u64,
            wish: *self.wish.lock().unwrap(),
            format: None,
            served: None,
            behind: self.behind.lock().unwrap().clone(),
        }
    }

    fn take_changes(&self, changed: &mut [u64]) -> VmResult<()> {
        self.check(Operation::TakeChanges)?;
        if *self.wish.lock().unwrap() == Wish::OnDemand {
            return Ok(());
        }
        self.with(|content| {
            for (block, mark) in content.marks.iter_mut().flatten().enumerate() {
                if std::mem::take(mark) {
                    changed[block / 64] |= 1 << (block % 64);
                }
            }
        });
        Ok(())
    }

    fn has_changed(&self, block: u64) -> bool {
        self.with(|content| {
            let marks = content.marks.as_ref();
            marks.is_some_and(|marks| marks[block as usize])
        })
    }

    fn bound_backlog(&self, most: Option<u64>) -> VmResult<()> {
        self.change_backlog(|backlog| {
            backlog.most = most;
            backlog.bounds.push(most);
        });
        Ok(())
    }

    fn let_in(&self) -> u64 {
        self.backlog.lock().unwrap().let_in
    }

    fn carried(&self, let_in: u64) {
        self.change_backlog(|backlog| backlog.carried = let_in);
    }

    fn waits_for(&self) -> Option<Duration> {
        let since = self.backlog.lock().unwrap().waits_since;
        since.map(|since| since.elapsed())
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        self.check(Operation::Map)?;
        Ok(self.with(|content| content.stored(range)))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        self.check(Operation::Read)?;
        self.with(|content| content.get(offset, into));
        Ok(())
    }
}

impl HeldBefore for MemoryDisk {
    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        self.check(Operation::MapBefore)?;
        Ok(self.with(|content| content.stored(range)))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        self.check(Operation::ReadBefore)?;
        self.with(|content| content.get(offset, into));
        Ok(())
    }

    fn clear(&self) -> VmResult<()> {
        self.check(Operation::WriteZeroes)?;
        self.with(|content| content.zero(0..content.bytes.len()));
        Ok(())
    }
}

impl DestinationVolume for MemoryDisk {
    fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn held_before(&self) -> Option<&dyn HeldBefore> {
        (self.held_before.load(Ordering::SeqCst)).then_some(self as &dyn HeldBefore)
    }

    fn rest(&self) -> Option<&dyn RestOfVolume> {
        (self.may_lack.load(Ordering::SeqCst)).then_some(self as &dyn RestOfVolume)
    }

    fn write(&self, offset: u64, bytes: &mut [u8]) -> VmResult<()> {
        self.check(Operation::Write)?;
        if self.damages.load(Ordering::SeqCst) {
            bytes[0] ^= 1;
        }
        self.with(|content| content.put(offset as usize, bytes));
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>) -> VmResult<()> {
        self.check(Operation::WriteZeroes)?;
        self.with(|content| content.zero(range.start as usize..range.end as usize));
        Ok(())
    }

    fn flush(&self) -> VmResult<()> {
        self.check(Operation::Flush)?;
        self.with(|content| content.flushed = true);
        Ok(())
    }
}

impl RestOfVolume for MemoryDisk {
    fn lacks(&self, blocks: &[u64]) -> VmResult<()> {
        self.check(Operation::Lack)?;
        // What is not durable may be told to be here.
        assert!(self.is_flushed());
        self.lacks.lock().unwrap().push(blocks.to_vec());
        Ok(())
    }
}
