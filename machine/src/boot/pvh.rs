//! The start info that a PVH guest is given in `ebx`.
//!
//! Source: Xen `xen/include/public/arch-x86/hvm/start_info.h`, version 1.

use migration::GuestRam;

use super::error::BootError;
use super::image::write;
use super::initrd::Initrd;
use super::layout::{self, MemoryKind};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

/// Writes start info, module list and memory map; the address of the start info.
pub(super) fn write_start_info(ram: &GuestRam, initrd: Option<&Initrd>) -> Result<u64, BootError> {
    let map = layout::memory_map(ram);
    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    let modules = if initrd.is_some() {
        layout::PVH_MODULES
    } else {
        0
    };
    for address in [modules, layout::CMDLINE, layout::RSDP, layout::PVH_MEMMAP] {
        info.extend_from_slice(&address.to_le_bytes());
    }
    // Few entries: one for each RAM region and one for the legacy hole.
    info.extend_from_slice(&u32::try_from(map.len()).unwrap_or(u32::MAX).to_le_bytes());
    info.extend_from_slice(&0_u32.to_le_bytes());
    write(ram, "the PVH start info", layout::PVH_START_INFO, &info)?;

    if let Some(initrd) = initrd {
        let mut module = Vec::with_capacity(32);
        for word in [initrd.start, initrd.len, 0, 0] {
            module.extend_from_slice(&word.to_le_bytes());
        }
        write(ram, "the PVH module list", layout::PVH_MODULES, &module)?;
    }

    let mut entries = Vec::with_capacity(map.len() * 24);
    for range in &map {
        let kind = match range.kind {
            MemoryKind::Ram => TYPE_RAM,
            MemoryKind::Reserved => TYPE_RESERVED,
        };
        entries.extend_from_slice(&range.start.to_le_bytes());
        entries.extend_from_slice(&range.len.to_le_bytes());
        entries.extend_from_slice(&kind.to_le_bytes());
        entries.extend_from_slice(&0_u32.to_le_bytes());
    }
    write(ram, "the PVH memory map", layout::PVH_MEMMAP, &entries)?;
    Ok(layout::PVH_START_INFO)
}
