//! What the engine asks of a VM, on the side that gives it away and on the side that takes it in: of the machine, of
//! its memory and of its disks. Each is a trait of its own, as each may be elsewhere than the others: disks that follow
//! later, memory that is still served when the machine runs at its destination, a state that goes into a file.

mod destination;
mod source;
mod terms;
mod volume;

pub use destination::{DestinationDisks, DestinationMachine, DestinationMemory, DestinationVm};
pub use source::{DirtyMemory, SourceDisks, SourceMachine, SourceVm};
pub use terms::{HugePages, MachineDescription, RamRegion, Rehearsal, RunState, VmResult};
pub use volume::{
    BLOCK_SIZE, Behind, DestinationVolume, HeldBefore, MOST_BEHIND, RestOfVolume, Served,
    SourceVolume, TravellingDisk, VolumeOffer, Wish,
};
