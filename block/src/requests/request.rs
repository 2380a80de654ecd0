//! Requests that are submitted and end later, on any thread and in any order.

use super::order::{Span, Use};
use crate::{BlockDevice, Buffer, Durability, Result, ZeroMode};

/// What a request asks for; offsets and lengths are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// [`BlockDevice::read`] from here on.
    Read {
        /// First byte.
        offset: u64,
    },
    /// [`BlockDevice::write`] from here on.
    Write {
        /// First byte.
        offset: u64,
        /// When it is durable.
        durability: Durability,
    },
    /// [`BlockDevice::flush`].
    Flush,
    /// [`BlockDevice::discard`].
    Discard {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// [`BlockDevice::write_zeroes`].
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// What becomes of the storage.
        mode: ZeroMode,
    },
}

impl Action {
    /// Carries it out, with these buffers where it takes any.
    pub(crate) fn carry_out(self, disk: &dyn BlockDevice, buffers: &[Buffer<'_>]) -> Result<()> {
        match self {
            Self::Read { offset } => disk.read(buffers, offset),
            Self::Write { offset, durability } => disk.write(buffers, offset, durability),
            Self::Flush => disk.flush(),
            Self::Discard { offset, len } => disk.discard(offset, len).map(drop),
            Self::WriteZeroes { offset, len, mode } => disk.write_zeroes(offset, len, mode),
        }
    }

    /// The bytes that it changes, as (first byte, length), given its buffers; nothing if it changes none.
    pub(crate) fn changes(self, buffers: &[Buffer<'_>]) -> Option<(u64, u64)> {
        match self {
            Self::Write { offset, .. } => Some((offset, Buffer::total_len(buffers))),
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } => {
                Some((offset, len))
            }
            Self::Read { .. } | Self::Flush => None,
        }
    }

    /// The bytes that it reads or changes, given its buffers. A flush has none: it covers the changes that
    /// ended before it was submitted, and is in nobody's order.
    pub(crate) fn span(self, buffers: &[Buffer<'_>]) -> Option<Span> {
        match self {
            Self::Read { offset } => {
                Some(Span::new(offset, Buffer::total_len(buffers), Use::Reads))
            }
            Self::Write { offset, .. } => {
                Some(Span::new(offset, Buffer::total_len(buffers), Use::Changes))
            }
            Self::Flush => None,
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } => {
                Some(Span::new(offset, len, Use::Changes))
            }
        }
    }
}

/// A request that somebody waits for. It ends exactly once, by one of its two ends; whoever drops it
/// instead has failed, and its owner counts it as ended with an error.
pub trait Job: Send {
    /// What it asks for.
    fn action(&self) -> Action;

    /// The memory that is read or filled; empty for a request that takes none.
    fn buffers(&self) -> &[Buffer<'_>];

    /// It has been carried out, or has failed.
    fn complete(self: Box<Self>, result: Result<()>);

    /// It needs what is not there for now (see [`Error::is_for_now`](crate::Error::is_for_now)), and is not in flight any more. Its owner
    /// submits it again some time after the next call of what [`BlockDevice::tell_arrivals`] was given.
    fn park(self: Box<Self>);
}

/// What else a thread that submits has to do, by which the backend chooses whether to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitter {
    /// Nothing: this request is the only one. It may be carried out on this thread.
    Alone,
    /// More requests wait behind this one. It may be carried out on this thread if that does not take long.
    Ahead,
    /// It must not be kept.
    Hurried,
}

/// A disk that has any number of requests in flight.
///
/// Requests that overlap, of which one is a change, are carried out in the order in which they were
/// submitted; all others in any order. A flush covers the changes that ended before it was submitted. A
/// job may end before `submit` returns.
pub trait Backend: Send + Sync {
    /// Begins a request.
    fn submit(&self, job: Box<dyn Job>, submitter: Submitter);

    /// Whether a request would begin at once, without the thread that submits it.
    fn has_room(&self) -> bool;

    /// The same disk in the form that blocks.
    fn disk(&self) -> &dyn BlockDevice;
}
