//! A record of everything that changes a disk, from which it can be made as a power cut would have left it.
//!
//! # What a recording says
//! A request is recorded when it begins, before the disk below has it, and when it has ended, before whoever asked for
//! it hears so. So whatever a recording says had ended before a flush began, had; and whatever somebody was told is
//! done has ended at a point that is not later than the one that [`Recorder::point`] gives then. What was written is
//! what is recorded, though the memory that it is written from may change meanwhile.
//!
//! What was durable at a point: writes that were durable at once and had ended; and what had ended when a flush began
//! that was confirmed by then. All else may be there or not, each sector for itself.

mod recording;

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use recording::Recording;
use recording::{Kind, RECORD, Record};

use super::pass_on::Layer;
use crate::{BlockDevice, Buffer, Discarded, Durability, Result, ZeroMode};

/// What addresses of written bytes are a multiple of.
const ALIGNMENT: usize = 4096;

enum Log {
    Memory(Vec<u8>),
    File(File),
}

impl Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(log) => {
                log.extend_from_slice(bytes);
                Ok(())
            }
            Self::File(log) => log.write_all(bytes),
        }
    }
}

struct State {
    log: Log,
    /// Bytes that may still be recorded.
    left: u64,
    requests: u64,
    points: usize,
    /// The log is full, or failed: nothing is recorded any more.
    is_over: bool,
}

impl State {
    fn record(&mut self, record: Record, content: &[u8]) {
        if self.is_over {
            return;
        }
        let len = (RECORD + content.len()) as u64;
        let left = self.left.checked_sub(len);
        let bytes = [&record.to_bytes(), content].concat();
        match left {
            Some(left) if self.log.write(&bytes).is_ok() => {
                self.left = left;
                self.points += 1;
            }
            _ => {
                tracing::warn!(points = self.points, "the recording of a disk is full");
                self.is_over = true;
            }
        }
    }
}

/// A layer that records what changes the disk below, up to so many bytes.
pub struct Recorder {
    inner: Arc<dyn BlockDevice>,
    state: Mutex<State>,
}

impl Recorder {
    /// Records in memory, at most `limit` bytes.
    pub fn in_memory(inner: Arc<dyn BlockDevice>, limit: u64) -> Self {
        Self::new(inner, Log::Memory(Vec::new()), limit)
    }

    /// Records to the end of a file, at most `limit` bytes; [`Recording::open`] reads it, also when this process is
    /// gone.
    pub fn to_file(inner: Arc<dyn BlockDevice>, file: File, limit: u64) -> Self {
        Self::new(inner, Log::File(file), limit)
    }

    fn new(inner: Arc<dyn BlockDevice>, log: Log, limit: u64) -> Self {
        Self {
            inner,
            state: Mutex::new(State {
                log,
                left: limit,
                requests: 0,
                points: 0,
                is_over: false,
            }),
        }
    }

    /// The point that has been reached.
    pub fn point(&self) -> usize {
        self.state().points
    }

    /// Whether all that happened so far is recorded: there was room for it. What was recorded before is right anyway.
    pub fn is_complete(&self) -> bool {
        !self.state().is_over
    }

    /// What was recorded in memory so far; nothing of what is recorded to a file.
    pub fn recording(&self) -> Recording {
        let state = self.state();
        match &state.log {
            Log::Memory(log) => Recording::read(&log[..]).unwrap_or_default(),
            Log::File(_) => Recording::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a request begins; its number.
    fn begin(&self, (kind, offset, len): (Kind, u64, u64), content: &[u8]) -> u64 {
        let mut state = self.state();
        let request = state.requests;
        state.requests += 1;
        let record = Record {
            kind,
            request,
            offset,
            len,
            content: content.len() as u64,
        };
        state.record(record, content);
        request
    }

    /// Records how a request ended, and passes that on.
    fn end<T>(&self, request: u64, result: Result<T>, how: impl FnOnce(&T) -> Kind) -> Result<T> {
        let end = Record {
            kind: result.as_ref().map_or(Kind::Failed, how),
            request,
            offset: 0,
            len: 0,
            content: 0,
        };
        self.state().record(end, &[]);
        result
    }
}

impl Layer for Recorder {
    const NAME: &'static str = "recorder";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let kind = match durability {
            Durability::Flushed => Kind::Write,
            Durability::Immediate => Kind::WriteDurably,
        };
        // A copy, as the guest may change what it writes at any time; aligned as storage past the page cache wants it.
        let len = Buffer::total_len(buffers) as usize;
        let mut copy = vec![0; len + ALIGNMENT];
        let from = copy.as_ptr().align_offset(ALIGNMENT);
        let copy = &mut copy[from..from + len];
        let mut at = 0;
        for buffer in buffers {
            buffer.as_volatile().copy_to(&mut copy[at..]);
            at += buffer.len();
        }
        let request = self.begin((kind, offset, len as u64), copy);
        let written = self.inner.write(&[Buffer::new(copy)], offset, durability);
        self.end(request, written, |()| Kind::Done)
    }

    fn flush(&self) -> Result<()> {
        let request = self.begin((Kind::Flush, 0, self.inner.size()), &[]);
        self.end(request, self.inner.flush(), |()| Kind::Done)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        let request = self.begin((Kind::Discard, offset, len), &[]);
        self.end(request, self.inner.discard(offset, len), |how| match how {
            Discarded::Zero => Kind::Done,
            Discarded::Kept => Kind::Kept,
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let request = self.begin((Kind::Zero, offset, len), &[]);
        let zeroed = self.inner.write_zeroes(offset, len, mode);
        self.end(request, zeroed, |()| Kind::Done)
    }
}
