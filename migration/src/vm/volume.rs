//! A disk that travels with its guest: a volume as memory is one, whose units are blocks.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::terms::VmResult;
use crate::disk_bytes::SnapshotDisk;
use crate::disk_modes::{DiskFormat, DiskPull};
use crate::id::PullSecret;
use crate::source_loss::OnSourceLoss;

/// Bytes in a block, the unit in which a disk's changes are marked and sent again.
pub const BLOCK_SIZE: u64 = 64 << 10;

/// A disk that is to travel, as its source tells of it before anything is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeOffer {
    /// Identity of the disk.
    pub id: String,
    /// Its size in bytes, as the guest sees it: a multiple of 512.
    pub size: u64,
    /// Bytes of it that hold data, as far as its storage tells; where it does not, all.
    pub allocated: u64,
    /// Whether it travels in any case.
    #[serde(default, skip_serializing_if = "Wish::is_travels")]
    pub wish: Wish,
    /// Format of the image that is made of it, or written over; absent where that is left to the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Where its content is, once the guest has gone, of one that goes [on demand](Wish::OnDemand), or may go over to that; absent
    /// where it is only asked whether that would work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
    /// Who serves what the host lacks that it leaves on demand, in the order in which they are asked; at most
    /// [`MOST_BEHIND`]. Absent where that has all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Behind>,
}

/// Most of those whom a disk's content is fetched from, beside the host that its guest has left last.
pub const MOST_BEHIND: usize = 7;

/// Who serves what those before it in the chain of a disk's sources lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Where: `IP:PORT` or `unix:PATH`, as the host before it reaches it.
    pub at: String,
    /// What its client names, 32 hexadecimal digits.
    pub id: String,
    /// What only the client knows beside.
    pub secret: PullSecret,
    /// Identity of the disk there.
    pub disk: String,
}

/// Where the content of a disk is served to the host that its guest has gone to, and as whom that asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Where: `IP:PORT` or `unix:PATH`, as the destination reaches it.
    pub at: String,
    /// What the client names, 32 hexadecimal digits.
    pub id: String,
    /// What only the client knows beside.
    pub secret: PullSecret,
    /// What comes that nobody asks for.
    #[serde(default, skip_serializing_if = "DiskPull::is_background")]
    pub pull: DiskPull,
    /// What requests for what is missing do while whoever serves it is lost.
    #[serde(default, skip_serializing_if = "OnSourceLoss::is_pause")]
    pub on_source_loss: OnSourceLoss,
}

/// What a source wants of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// It travels.
    #[default]
    Travels,
    /// It travels if the destination does not reach it where it lies.
    MayTravel,
    /// Nothing of its content goes with the guest: the destination fetches that when the guest runs there.
    OnDemand,
}

impl Wish {
    fn is_travels(&self) -> bool {
        *self == Self::Travels
    }
}

/// A disk that is going to travel, as its destination has chosen.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TravellingDisk {
    /// Identity of the disk.
    pub id: String,
    /// Why it does; absent where its source wants it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl VolumeOffer {
    /// Bytes of it that may go before the guest does: none of one that is fetched afterwards.
    pub fn moves(&self) -> u64 {
        match self.wish {
            Wish::Travels | Wish::MayTravel => self.size,
            Wish::OnDemand => 0,
        }
    }

    /// Whether a part of it may be fetched afterwards though it [travels](Wish::Travels).
    pub fn may_leave_rest(&self) -> bool {
        self.wish == Wish::Travels && self.served.is_some()
    }

    /// Blocks of those, the last of which may be short.
    pub fn blocks(&self) -> u64 {
        self.moves().div_ceil(BLOCK_SIZE)
    }
}

/// A disk that is given away.
///
/// # Who marks blocks
/// From [`super::SourceDisks::track_disks`] on, a block is marked before the guest's change of it begins. Whoever takes the
/// marks before it reads misses nothing: a change that is under way then is seen by the read, or marks the block
/// again for the next.
///
/// Calls come from the engine's coordinating thread, those that read from every data stream.
pub trait SourceVolume: Send + Sync {
    /// What the destination is told of it.
    fn offer(&self) -> VolumeOffer;
    /// Path of its image, for the report; `None` where it has none.
    fn image(&self) -> Option<String> {
        None
    }
    /// Adds the blocks to `changed` that were marked since this was last called, and forgets their marks; one bit for
    /// each block, in words of 64. With the guest stopped, what it adds is all that there will be.
    fn take_changes(&self, changed: &mut [u64]) -> VmResult<()>;
    /// Whether `block` was marked since marks were last taken, so that it is going to be sent again whatever is read of it
    /// now. Asked often, and answered at once.
    fn has_changed(&self, _block: u64) -> bool {
        false
    }
    /// Has the guest's changes wait while blocks of more than `most` bytes are marked and not told as [carried](Self::carried)
    /// away, from the next one on; `None`: they wait no more. A disk that never was bound need not count them.
    fn bound_backlog(&self, _most: Option<u64>) -> VmResult<()> {
        Ok(())
    }
    /// Has the guest write no more than `rate` bytes a second from when changes are [bound](Self::bound_backlog) on; `None`: any
    /// number. Told again and again.
    fn limit_writes(&self, _rate: Option<u64>) {}
    /// Bytes of blocks that the guest was let in to change while that was counted: it only grows. Asked before marks are
    /// taken.
    fn let_in(&self) -> u64 {
        0
    }
    /// What was let in when the count was `let_in` has left.
    fn carried(&self, _let_in: u64) {}
    /// For how long changes have waited while nothing was carried away, if any wait.
    fn waits_for(&self) -> Option<Duration> {
        None
    }
    /// Whether it can still go: asked again and again while it is copied, and answered at once.
    fn check(&self) -> VmResult<()> {
        Ok(())
    }
    /// What was done by way of overlays, of one that goes so.
    fn overlays(&self) -> Option<SnapshotDisk> {
        None
    }
    /// Which of the bytes of `range` hold data, ascending, in sectors; all others read as zeroes.
    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>>;
    /// Fills `into` from byte `offset` on; both in sectors.
    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()>;
}

/// A disk that comes in; it reads as zeroes when it is there, unless it tells of what it held before. Calls come from every data stream, those for one block
/// from one at a time.
pub trait DestinationVolume: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// What it holds from before; `None` where it reads as zeroes. Asked once, before anything is written.
    fn held_before(&self) -> Option<&dyn HeldBefore> {
        None
    }
    /// Writes `bytes` from byte `offset` on; both in sectors. They are nobody else's meanwhile, and stay as they are.
    fn write(&self, offset: u64, bytes: &mut [u8]) -> VmResult<()>;
    /// Makes `range`, in sectors, read as zeroes, and gives its storage back.
    fn write_zeroes(&self, range: Range<u64>) -> VmResult<()>;
    /// Makes durable all that was written.
    fn flush(&self) -> VmResult<()>;
    /// Of one [that may leave a rest behind](VolumeOffer::may_leave_rest), what takes that.
    fn rest(&self) -> Option<&dyn RestOfVolume> {
        None
    }
}

/// A disk that comes in, of which a part may be fetched when its guest is here.
pub trait RestOfVolume {
    /// All has come that comes with the guest, and was flushed. The blocks are missing that `blocks` has, a bit for each in words
    /// of 64; none beyond those words are. Makes that durable, and fetches them when the guest runs.
    fn lacks(&self, blocks: &[u64]) -> VmResult<()>;
}

/// What an image holds that a disk which comes in is written over. Calls come from one thread, while others write.
pub trait HeldBefore {
    /// Which of the bytes of `range` have storage, ascending, in sectors; all others read as zeroes.
    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>>;
    /// Fills `into` from byte `offset` on; both in sectors.
    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()>;
    /// Gives all of it up: the disk reads as zeroes.
    fn clear(&self) -> VmResult<()>;
}
