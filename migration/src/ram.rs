//! Guest RAM as the VMM hands it over, and the unit in which all of the engine counts it.

/// Guest RAM: memfd-backed mappings whose writes by the VMM's own devices are tracked per page.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// Bytes in a guest page, the unit of dirty tracking.
pub const PAGE_SIZE: u64 = 4096;
