//! What is to be booted, and where the boot CPU then begins.

use std::path::Path;

use migration::GuestRam;

use super::image::KernelSource;

/// A virtio-mmio device as the guest finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest-physical address of its registers, in the hole below 4 GiB.
    pub base: u64,
    /// Length of its registers in bytes.
    pub len: u64,
    /// Its interrupt, edge-triggered and active-high.
    pub gsi: u32,
}

/// What to boot, and the machine as far as the guest must be told of it.
#[derive(Debug, Clone)]
pub struct BootPlan<'a> {
    /// The kernel.
    pub kernel: &'a KernelSource,
    /// The initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Number of CPUs; their APIC ids are 0 and up.
    pub cpus: u32,
    /// Guest RAM, all zero.
    pub ram: &'a GuestRam,
    /// virtio-mmio devices in slot order.
    pub mmio_slots: &'a [MmioSlot],
    /// The VM generation id; a guest that sees it change knows that it is a copy.
    pub generation_id: [u8; 16],
}

/// Where the boot CPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// 32-bit protected mode without paging.
    Pvh {
        /// Address of the first instruction.
        entry: u32,
        /// Address of the start info.
        start_info: u64,
    },
    /// 64-bit mode by the Linux boot protocol.
    Linux64 {
        /// Address of the first instruction.
        entry: u64,
        /// Address of the zero page.
        boot_params: u64,
    },
}
