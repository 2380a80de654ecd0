//! Faults on request: a layer that makes any image fail, tear, fall short, be slow, hang or lack what is asked for, by
//! count and by place.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pass_on::Layer;
use crate::arrivals::Arrivals;
use crate::{Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Extent, Result, ZeroMode};

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
    /// A read fills only this many bytes, and a write stores only so many, then fails as if the image ended there;
    /// other operations just fail.
    Short(u64),
    /// It waits for so long, or for [`FaultLayer::release`], then is done as usual.
    Slow(Duration),
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

/// A fault, and the bytes of the disk that an operation has to touch to be hit.
#[derive(Debug)]
struct Planned {
    fault: Fault,
    place: Range<u64>,
}

impl Planned {
    fn concerns(&self, operation: Operation, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        // An operation without bytes touches those around it.
        let touches =
            offset < self.place.end && self.place.start < end.max(offset.saturating_add(1));
        self.fault.operation == operation && touches
    }
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Planned>,
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
    arrived: Arrivals,
}

impl FaultLayer {
    /// Lays the faults over `inner`; none are planned yet.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self {
            inner,
            state: Mutex::default(),
            changed: Condvar::new(),
            arrived: Arrivals::default(),
        }
    }

    /// Plans a fault, wherever on the disk it is met.
    pub fn inject(&self, fault: Fault) {
        self.inject_at(0..u64::MAX, fault);
    }

    /// Plans a fault for operations that touch these bytes; no other is counted. A flush touches all.
    pub fn inject_at(&self, place: Range<u64>, fault: Fault) {
        self.state().faults.push(Planned { fault, place });
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
        self.arrived.arrive();
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

    /// The effect on the operation that begins now; what only delays it is over then.
    fn effect(&self, operation: Operation, offset: u64, len: u64) -> Option<Effect> {
        let mut state = self.state();
        let mut effect = None;
        let planned = state.faults.iter_mut();
        for Planned { fault, .. } in
            planned.filter(|planned| planned.concerns(operation, offset, len))
        {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 && effect.is_none() {
                fault.times -= 1;
                effect = Some(fault.effect);
            }
        }
        state.faults.retain(|planned| planned.fault.times > 0);
        match effect {
            Some(Effect::Hang) => self.hang(state, None),
            Some(Effect::Slow(delay)) => self.hang(state, Some(Instant::now() + delay)),
            effect => return effect,
        }
        None
    }

    /// Waits for a release, until a deadline if there is one.
    fn hang(&self, mut state: MutexGuard<'_, State>, deadline: Option<Instant>) {
        let seen = state.releases;
        state.hanging += 1;
        self.changed.notify_all();
        while state.releases == seen {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        state.hanging -= 1;
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

    fn short(&self, offset: u64) -> Error {
        Error::Short {
            path: PathBuf::from(self.inner.identity().name),
            offset,
        }
    }

    /// Fails as an effect has it.
    fn fail(
        &self,
        effect: Option<Effect>,
        operation: Operation,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        match effect {
            None | Some(Effect::Hang | Effect::Slow(_)) => Ok(()),
            Some(Effect::Fail(errno)) => Err(self.error(operation, offset, len, errno)),
            Some(Effect::Tear(_)) => Err(self.error(operation, offset, len, libc::EIO)),
            Some(Effect::Short(done)) => Err(self.short(offset.saturating_add(done.min(len)))),
            Some(Effect::Absent) => Err(self.absent(offset, len)),
        }
    }

    fn pass(&self, operation: Operation, offset: u64, len: u64) -> Result<()> {
        self.fail(self.effect(operation, offset, len), operation, offset, len)
    }
}

/// The first `len` bytes of `buffers`.
fn beginning<'b>(buffers: &[Buffer<'b>], len: u64) -> Vec<Buffer<'b>> {
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    let mut first = Vec::new();
    for buffer in buffers {
        first.push(buffer.take(left));
        left = left.saturating_sub(buffer.len());
    }
    first
}

impl std::fmt::Debug for FaultLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultLayer")
            .field("inner", &self.inner.identity())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Layer for FaultLayer {
    const NAME: &'static str = "fault";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        let len = Buffer::total_len(buffers);
        match self.effect(Operation::Read, offset, len) {
            Some(Effect::Short(filled)) => {
                self.inner.read(&beginning(buffers, filled), offset)?;
                Err(self.short(offset.saturating_add(filled.min(len))))
            }
            effect => {
                self.fail(effect, Operation::Read, offset, len)?;
                self.inner.read(buffers, offset)
            }
        }
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        let len = Buffer::total_len(buffers);
        let effect = self.effect(Operation::Write, offset, len);
        if let Some(Effect::Tear(stored) | Effect::Short(stored)) = effect {
            self.inner
                .write(&beginning(buffers, stored), offset, durability)?;
        }
        self.fail(effect, Operation::Write, offset, len)?;
        self.inner.write(buffers, offset, durability)?;
        match durability {
            Durability::Flushed => Ok(()),
            Durability::Immediate => self.pass(Operation::Flush, offset, len),
        }
    }

    fn flush(&self) -> Result<()> {
        self.pass(Operation::Flush, 0, self.inner.size())?;
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
        self.arrived.tell(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }
}
