//! Faults on request: a layer that makes any image fail, tear, hang or lack what is asked for.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{
    Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Extent, Identity, Result, ZeroMode,
};

/// Operations that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`BlockDevice::read`].
    Read,
    /// [`BlockDevice::write`].
    Write,
    /// [`BlockDevice::flush`], and the second half of a write that is durable at once.
    Flush,
    /// [`BlockDevice::discard`].
    Discard,
    /// [`BlockDevice::write_zeroes`].
    WriteZeroes,
    /// [`BlockDevice::extents`].
    Extents,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes to",
            Self::Extents => "map",
        }
    }
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this error number, and nothing is done.
    Fail(i32),
    /// A write stores only this many bytes, then fails with `EIO`; other operations just fail.
    Tear(u64),
    /// It waits for [`FaultLayer::release`], then is done as usual.
    Hang,
    /// What it needs has not come yet, and nothing is done.
    Absent,
}

/// One fault: which operations, when, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation that is hit.
    pub operation: Operation,
    /// How many of them pass first.
    pub skip: u64,
    /// How many are hit then.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    /// Operations that wait for a release.
    hanging: usize,
    /// Counts releases, so that a waiter sees the one after it began.
    releases: u64,
}

/// A layer that carries out the faults it was given, and passes everything else on.
pub struct FaultLayer {
    inner: Arc<dyn BlockDevice>,
    state: Mutex<State>,
    changed: Condvar,
    arrived: Mutex<Vec<Arrived>>,
}

impl FaultLayer {
    /// Lays the faults over `inner`; none are planned yet.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self {
            inner,
            state: Mutex::default(),
            changed: Condvar::new(),
            arrived: Mutex::default(),
        }
    }

    /// Plans a fault.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Forgets all planned faults; what hangs stays.
    pub fn clear(&self) {
        self.state().faults.clear();
    }

    /// Lets everything go on that hangs now.
    pub fn release(&self) {
        self.state().releases += 1;
        self.changed.notify_all();
    }

    /// Says that something absent has come; what was planned stays planned.
    pub fn arrive(&self) {
        let told = self.arrived.lock();
        for arrived in told.unwrap_or_else(PoisonError::into_inner).iter() {
            arrived();
        }
    }

    /// How many operations hang.
    pub fn hanging(&self) -> usize {
        self.state().hanging
    }

    /// Waits until `count` operations hang.
    pub fn wait_hanging(&self, count: usize) {
        let mut state = self.state();
        while state.hanging < count {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The effect on the operation that begins now.
    fn effect(&self, operation: Operation) -> Option<Effect> {
        let mut state = self.state();
        let mut effect = None;
        for fault in state
            .faults
            .iter_mut()
            .filter(|fault| fault.operation == operation)
        {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 && effect.is_none() {
                fault.times -= 1;
                effect = Some(fault.effect);
            }
        }
        state.faults.retain(|fault| fault.times > 0);
        if effect == Some(Effect::Hang) {
            let seen = state.releases;
            state.hanging += 1;
            self.changed.notify_all();
            while state.releases == seen {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.hanging -= 1;
            return None;
        }
        effect
    }

    fn absent(&self, offset: u64, len: u64) -> Error {
        Error::Absent {
            path: PathBuf::from(self.inner.identity().name),
            offset,
            len,
        }
    }

    fn error(&self, operation: Operation, offset: u64, len: u64, errno: i32) -> Error {
        Error::Io {
            operation: operation.name(),
            path: PathBuf::from(self.inner.identity().name),
            offset,
            len,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    fn pass(&self, operation: Operation, offset: u64, len: u64) -> Result<()> {
        match self.effect(operation) {
            None | Some(Effect::Hang) => Ok(()),
            Some(Effect::Fail(errno)) => Err(self.error(operation, offset, len, errno)),
            Some(Effect::Tear(_)) => Err(self.error(operation, offset, len, libc::EIO)),
            Some(Effect::Absent) => Err(self.absent(offset, len)),
        }
    }
}

impl std::fmt::Debug for FaultLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultLayer")
            .field("inner", &self.inner.identity())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl BlockDevice for FaultLayer {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn has_unflushed_writes(&self) -> bool {
        self.inner.has_unflushed_writes()
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.pass(Operation::Read, offset, Buffer::total_len(buffers))?;
        self.inner.read(buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let len = Buffer::total_len(buffers);
        match self.effect(Operation::Write) {
            None | Some(Effect::Hang) => self.inner.write(buffers, offset, durability)?,
            Some(Effect::Fail(errno)) => {
                return Err(self.error(Operation::Write, offset, len, errno));
            }
            Some(Effect::Absent) => return Err(self.absent(offset, len)),
            Some(Effect::Tear(stored)) => {
                let mut left = usize::try_from(stored).unwrap_or(usize::MAX);
                let mut torn = Vec::new();
                for buffer in buffers {
                    torn.push(buffer.take(left));
                    left = left.saturating_sub(buffer.len());
                }
                self.inner.write(&torn, offset, durability)?;
                return Err(self.error(Operation::Write, offset, len, libc::EIO));
            }
        }
        match durability {
            Durability::Flushed => Ok(()),
            Durability::Immediate => self.pass(Operation::Flush, offset, len),
        }
    }

    fn flush(&self) -> Result<()> {
        self.pass(Operation::Flush, 0, self.size())?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.pass(Operation::Discard, offset, len)?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.pass(Operation::WriteZeroes, offset, len)?;
        self.inner.write_zeroes(offset, len, mode)
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.pass(Operation::Extents, offset, len)?;
        self.inner.extents(offset, len, limit)
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        let told = self.arrived.lock();
        told.unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }
}
