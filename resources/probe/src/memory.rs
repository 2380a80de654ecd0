//! RAM as the boot information tells it, the plan of its use, and page tables above 4 GiB.

use crate::clock::{peek, poke};
use crate::gate;

const GIB: u64 = 1 << 30;
pub const PAGE: u64 = 4096;
pub const MAX_RANGES: usize = 16;

#[derive(Clone, Copy, Default)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Cuts pages off the low end; `None` when there is not enough.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        (self.len() >= bytes).then(|| {
            self.start += bytes;
            self.start - bytes
        })
    }
}

/// What the VMM says about the machine (the PVH boot ABI's `hvm_start_info`).
pub struct BootInfo {
    pub cmdline: u64,
    pub rsdp: u64,
    /// RAM above the probe, page-aligned.
    pub free: [Range; MAX_RANGES],
    pub ram: u64,
}

unsafe extern "C" {
    static boot_info: u64;
    static probe_end: u8;
    static mut pdpt: [u64; 512];
}

impl BootInfo {
    pub fn read() -> Self {
        // SAFETY: written by the entry code.
        let info = unsafe { (&raw const boot_info).read_volatile() };
        let mut this = Self {
            cmdline: 0,
            rsdp: 0,
            free: [Range::default(); MAX_RANGES],
            ram: 0,
        };
        if info == 0 || peek::<u32>(info) != 0x336e_c578 {
            return this;
        }
        this.cmdline = peek(info + 0x18);
        this.rsdp = peek(info + 0x20);
        if peek::<u32>(info + 4) == 0 {
            return this;
        }
        let map: u64 = peek(info + 0x28);
        let floor = &raw const probe_end as u64;
        let mut count = 0;
        for i in 0..u64::from(peek::<u32>(info + 0x30).min(128)) {
            let entry = map + i * 24;
            if peek::<u32>(entry + 16) != 1 {
                continue;
            }
            let (start, len) = (peek::<u64>(entry), peek::<u64>(entry + 8));
            let end = start.saturating_add(len).min(512 * GIB);
            this.ram += end.saturating_sub(start);
            let range = Range {
                start: start.max(floor).next_multiple_of(PAGE),
                end: end & !(PAGE - 1),
            };
            if range.start < range.end && count < MAX_RANGES {
                this.free[count] = range;
                count += 1;
            }
        }
        this
    }

    /// Maps RAM above 4 GiB: with 1 GiB pages, or else with a table of 2 MiB pages for each GiB.
    pub fn map_high(&mut self) {
        let huge = gate::cpuid(0x8000_0000, 0)[0] >= 0x8000_0001
            && gate::cpuid(0x8000_0001, 0)[3] & (1 << 26) != 0;
        for i in 0..MAX_RANGES {
            let range = self.free[i];
            if range.start >= range.end || range.end <= 4 * GIB {
                continue;
            }
            for gib in (range.start / GIB).max(4)..range.end.div_ceil(GIB) {
                let entry = &raw mut pdpt as u64 + gib * 8;
                if peek::<u64>(entry) != 0 {
                    continue;
                }
                if huge {
                    poke(entry, gib * GIB | 0x87);
                    continue;
                }
                let low = self
                    .free
                    .iter_mut()
                    .find(|r| r.end <= 4 * GIB && r.len() >= PAGE);
                let Some(table) = low.and_then(|r| r.take(PAGE)) else {
                    self.free[i].end = self.free[i].end.min(gib * GIB).max(range.start);
                    break;
                };
                for k in 0..512 {
                    poke(table + k * 8, (gib * GIB + (k << 21)) | 0x87);
                }
                poke(entry, table | 7);
            }
        }
    }

    /// Takes pages from the largest range, as many as there are up to `bytes`: address and length.
    pub fn take_largest(&mut self, bytes: u64) -> (u64, u64) {
        let Some(range) = self.free.iter_mut().max_by_key(|range| range.len()) else {
            return (0, 0);
        };
        let bytes = bytes
            .checked_next_multiple_of(PAGE)
            .unwrap_or(u64::MAX)
            .min(range.len());
        range
            .take(bytes & !(PAGE - 1))
            .map_or((0, 0), |address| (address, bytes))
    }

    /// APIC ids of the CPUs that the MADT enables; the first is ours. How many there are.
    pub fn apic_ids(&self, own: u8, ids: &mut [u8]) -> usize {
        ids[0] = own;
        let mut count = 1;
        let Some(madt) = self.madt() else {
            return count;
        };
        let end = madt + u64::from(peek_unaligned::<u32>(madt + 4));
        let mut at = madt + 44;
        while at + 8 <= end {
            let (kind, len) = (peek::<u8>(at), u64::from(peek::<u8>(at + 1)));
            let flags = peek_unaligned::<u32>(at + 4);
            let id = peek::<u8>(at + 3);
            if kind == 0 && flags & 1 != 0 && id != own && count < ids.len() {
                ids[count] = id;
                count += 1;
            }
            if len < 2 {
                break;
            }
            at += len;
        }
        count
    }

    fn madt(&self) -> Option<u64> {
        // Only the first 4 GiB are mapped at this time.
        let mapped = |address: u64| (address != 0 && address < 4 * GIB - 65536).then_some(address);
        let rsdp = mapped(self.rsdp)?;
        let (root, entry_size) = if peek::<u8>(rsdp + 15) >= 2 {
            (mapped(peek_unaligned::<u64>(rsdp + 24))?, 8)
        } else {
            (mapped(peek_unaligned::<u32>(rsdp + 16).into())?, 4)
        };
        let len = u64::from(peek_unaligned::<u32>(root + 4).min(4096));
        let mut at = root + 36;
        while at + entry_size <= root + len {
            let table = if entry_size == 8 {
                peek_unaligned::<u64>(at)
            } else {
                peek_unaligned::<u32>(at).into()
            };
            if let Some(table) = mapped(table)
                && peek_unaligned::<u32>(table) == u32::from_le_bytes(*b"APIC")
            {
                return Some(table);
            }
            at += entry_size;
        }
        None
    }
}

fn peek_unaligned<T>(address: u64) -> T {
    // SAFETY: addresses below 4 GiB, which are mapped.
    unsafe { (address as *const T).read_unaligned() }
}
