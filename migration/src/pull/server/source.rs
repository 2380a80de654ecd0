//! What a server reads: a volume that nobody changes any more.

use std::ops::Range;

use crate::vm::VmResult;
use crate::wire::pull::PulledVolume;

/// A volume that is served. Calls come from any number of threads.
pub trait PullSource: Send + Sync {
    /// What clients are told of it; always the same.
    fn volume(&self) -> PulledVolume;
    /// Whether unit `unit` is here; always the same. One that is not is answered to nobody, and its client has somebody else to
    /// ask.
    fn holds(&self, _unit: u64) -> bool {
        true
    }
    /// Which of the bytes of `range` hold data, ascending; all others read as zeroes.
    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>>;
    /// Fills `into` from byte `offset` on.
    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()>;
    /// Records that its client is whole and durable, so that no crash forgets it; again, if it was recorded.
    fn release(&self) -> VmResult<()>;
    /// Whether that was recorded before it is served.
    fn is_released(&self) -> bool;
}
