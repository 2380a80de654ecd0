//! Where everything lies in guest-physical memory at boot.
//!
//! | address | what | told to the guest as |
//! |---|---|---|
//! | `0x0000_0000`..`0x0000_3000` | zero page frames below the TSS limit of the boot CPU | RAM |
//! | `0x0000_0472` | the word that a restarting kernel leaves for the firmware | RAM |
//! | `0x0000_3000` | GDT of a Linux 64-bit entry | RAM |
//! | `0x0000_4000`..`0x0000_a000` | identity page tables of a Linux 64-bit entry (4 GiB) | RAM |
//! | `0x0001_0000` | Linux zero page, or PVH start info with its tables | RAM |
//! | `0x0002_0000`..`0x0003_0000` | command line | RAM |
//! | `0x000a_0000`..`0x0010_0000` | legacy hole | reserved |
//! | `0x000e_0000`..`0x000f_0000` | RSDP and the other ACPI tables | reserved |
//! | `0x000f_0000` | generation id | reserved |
//! | `0x000f_fff0` | code at the reset vector | reserved |
//! | `0x0010_0000`..end of low RAM | kernel, then (as high as the kernel allows) initrd | RAM |
//! | `0xc000_0000`..`0x1_0000_0000` | no RAM: virtio-mmio, IOAPIC, local APICs, KVM's own pages | absent |
//! | `0x1_0000_0000`.. | the rest of RAM | RAM |

use migration::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The word of the BIOS data area that a restarting kernel leaves for the firmware.
pub const RESTART_WORD: u64 = 0x472;
/// GDT of a Linux 64-bit entry: null, unused, code, data.
pub const GDT: u64 = 0x3000;
/// Top-level page table of a Linux 64-bit entry.
pub const PML4: u64 = 0x4000;
/// Its one page-directory-pointer table.
pub const PDPT: u64 = 0x5000;
/// The four page directories that map the first 4 GiB by 2 MiB pages.
pub const PAGE_DIRECTORIES: u64 = 0x6000;
/// Linux zero page (`boot_params`), one page.
pub const BOOT_PARAMS: u64 = 0x1_0000;
/// PVH start info, followed in the same page by [`PVH_MODULES`] and [`PVH_MEMMAP`].
pub const PVH_START_INFO: u64 = 0x1_0000;
/// PVH list of modules: the initrd.
pub const PVH_MODULES: u64 = PVH_START_INFO + 0x40;
/// PVH memory map.
pub const PVH_MEMMAP: u64 = PVH_START_INFO + 0x80;
/// Command line, ended by a zero byte.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its end.
pub const CMDLINE_SPACE: u64 = 0x1_0000;
/// End of conventional memory: from here to [`HIGH_RAM`] nothing is offered to the guest as RAM.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// RSDP; the tables follow it.
pub const RSDP: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0xf_0000;
/// The 16 bytes of the VM generation id.
pub const GENERATION_ID: u64 = 0xf_0000;
/// Where a CPU in real mode begins after a reset, F000:FFF0: the last 16 bytes of the legacy hole.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// First byte above the legacy hole: kernels are loaded from here on.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where low RAM ends at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// What a stretch of the memory map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free for the guest to use.
    Ram,
    /// Not to be touched, except as ACPI tells.
    Reserved,
}

/// A stretch of the memory map that the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// End of the RAM that begins at address 0; 0 if there is none.
pub fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.iter().fold(0, |end, region| {
        if region.start_addr().0 == end {
            end + region.len()
        } else {
            end
        }
    })
}

/// The memory map, ascending: RAM but for the legacy hole, which is reserved.
pub fn memory_map(ram: &GuestRam) -> Vec<MemoryRange> {
    let low_end = low_ram_end(ram);
    let mut map = vec![
        MemoryRange {
            start: 0,
            len: CONVENTIONAL_END.min(low_end),
            kind: MemoryKind::Ram,
        },
        MemoryRange {
            start: CONVENTIONAL_END,
            len: HIGH_RAM - CONVENTIONAL_END,
            kind: MemoryKind::Reserved,
        },
    ];
    if low_end > HIGH_RAM {
        map.push(MemoryRange {
            start: HIGH_RAM,
            len: low_end - HIGH_RAM,
            kind: MemoryKind::Ram,
        });
    }
    for region in ram.iter() {
        let start = region.start_addr().0;
        if start < low_end {
            continue;
        }
        match map.last_mut() {
            Some(last) if last.kind == MemoryKind::Ram && last.start + last.len == start => {
                last.len += region.len();
            }
            _ => map.push(MemoryRange {
                start,
                len: region.len(),
                kind: MemoryKind::Ram,
            }),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    // Everything below is placed by hand: it must stay disjoint and inside its range.
    const _: () = assert!(GDT >= 0x2068 && GDT + 0x20 <= PML4);
    const _: () = assert!(PAGE_DIRECTORIES + 4 * 0x1000 <= BOOT_PARAMS);
    const _: () = assert!(BOOT_PARAMS + 0x1000 <= CMDLINE);
    const _: () = assert!(CMDLINE + CMDLINE_SPACE <= CONVENTIONAL_END);
    const _: () = assert!(RSDP >= CONVENTIONAL_END && ACPI_END <= GENERATION_ID);
    const _: () = assert!(GENERATION_ID + 0x1000 <= RESET_VECTOR && RESET_VECTOR + 16 == HIGH_RAM);
    // Beyond the TSS itself, where a zero would let CPL3 use the ports 0x2390 to 0x239f: nothing is there.
    const _: () = assert!(RESTART_WORD > 0x68 && RESTART_WORD + 2 <= GDT);

    #[test]
    fn memory_map_leaves_out_the_legacy_hole_and_the_device_hole() {
        let ram = GuestRam::from_ranges(&[
            (GuestAddress(0), 64 << 20),
            (GuestAddress(HOLE_END), 16 << 20),
        ])
        .unwrap();
        let range = |start, len, kind| MemoryRange { start, len, kind };
        assert_eq!(
            memory_map(&ram),
            [
                range(0, CONVENTIONAL_END, MemoryKind::Ram),
                range(
                    CONVENTIONAL_END,
                    HIGH_RAM - CONVENTIONAL_END,
                    MemoryKind::Reserved
                ),
                range(HIGH_RAM, (64 << 20) - HIGH_RAM, MemoryKind::Ram),
                range(HOLE_END, 16 << 20, MemoryKind::Ram),
            ]
        );
    }
}
