//! Guest RAM: one file of shared memory, mapped shared, laid out around the hole below 4 GiB.

mod file;
mod ram;
mod reserve;
#[cfg(test)]
pub(crate) mod testing;

pub use file::RamFile;
pub use ram::{
    HIGH_START, HOLE_START, MemoryError, PageBacking, allocate, back_by, check_size, end, layout,
};
pub use reserve::{Reserve, Room, Rooms, present};
