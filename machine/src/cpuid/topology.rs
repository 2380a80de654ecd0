//! The leaves that tell how the CPUs of a VM lie together.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::leaf::{CpuidLeaf, is_amd};

const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF8000_0001_ECX_CMP_LEGACY: u32 = 1 << 1;

/// One socket of `cpus` cores with one thread each; this is core `index`, its APIC id as well.
pub(super) fn set_topology(entries: &mut Vec<CpuidLeaf>, cpus: u32, index: u32) {
    let cpus = cpus.max(1);
    let id_bits = cpus.next_power_of_two().trailing_zeros();
    let max_core_id = (1_u32 << id_bits) - 1;
    let amd = is_amd(entries);
    let max_leaf = entries
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);

    entries.retain(|e| e.function != 0xb && e.function != 0x1f);
    for entry in entries.iter_mut() {
        match entry.function {
            1 => {
                // Keeps the brand and the cache line size for CLFLUSH.
                entry.ebx = (entry.ebx & 0xffff) | (max_core_id + 1).min(255) << 16 | index << 24;
                set_bit(&mut entry.edx, LEAF1_EDX_HTT, cpus > 1);
            }
            4 if entry.eax & 0x1f != 0 => {
                set_cache_sharing(entry, max_core_id);
                entry.eax = (entry.eax & 0x03ff_ffff) | max_core_id.min(63) << 26;
            }
            0x8000_001d if entry.eax & 0x1f != 0 => set_cache_sharing(entry, cpus - 1),
            0x8000_0001 if amd => {
                set_bit(&mut entry.ecx, LEAF8000_0001_ECX_CMP_LEGACY, cpus > 1);
            }
            0x8000_0008 if amd => {
                entry.ecx = (entry.ecx & !0xf0ff) | (cpus - 1).min(255) | id_bits << 12;
            }
            0x8000_001e if amd => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (index, index & 0xff, 0, 0);
            }
            _ => {}
        }
    }
    for function in [0xb, 0x1f] {
        if max_leaf >= function {
            // Level type 1 is a thread and 2 a core; the last level has type 0.
            for (level, shift, count, kind) in [(0, 0, 1, 1), (1, id_bits, cpus, 2), (2, 0, 0, 0)] {
                entries.push(CpuidLeaf {
                    function,
                    index: level,
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: shift,
                    ebx: count,
                    ecx: level | kind << 8,
                    edx: index,
                });
            }
        }
    }
}

/// Caches below the third level are a core's own; the third is shared by `sharers` + 1 CPUs.
fn set_cache_sharing(entry: &mut CpuidLeaf, sharers: u32) {
    let level = (entry.eax >> 5) & 0x7;
    let sharers = if level < 3 { 0 } else { sharers.min(0xfff) };
    entry.eax = (entry.eax & !0x03ff_c000) | sharers << 14;
}

fn set_bit(word: &mut u32, bit: u32, on: bool) {
    if on {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::{entry, find};

    #[test]
    fn topology_is_one_socket_of_single_threaded_cores() {
        let mut entries = vec![
            entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0, 0xff7f_0800, 0, 0]),
            entry(4, 0, [0xfc1c_4121, 0, 0, 0]),
            entry(4, 3, [0xfc1f_c163, 0, 0, 0]),
            entry(0xb, 0, [9, 9, 9, 9]),
        ];
        set_topology(&mut entries, 3, 2);
        assert_eq!(find(&entries, 1, 0).ebx, 0x0204_0800);
        assert_ne!(find(&entries, 1, 0).edx & LEAF1_EDX_HTT, 0);
        let l1 = find(&entries, 4, 0).eax;
        assert_eq!((l1 >> 14 & 0xfff, l1 >> 26), (0, 3));
        let l3 = find(&entries, 4, 3).eax;
        assert_eq!((l3 >> 14 & 0xfff, l3 >> 26), (3, 3));
        for function in [0xb, 0x1f] {
            let core = find(&entries, function, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
        }
        assert_eq!(entries.iter().filter(|e| e.function == 0xb).count(), 3);
    }

    #[test]
    fn amd_topology_leaves_agree() {
        // As /proc/cpuinfo of such a CPU spells it: "Auth", "enti", "cAMD" in ebx, edx, ecx.
        let [ebx, edx, ecx] = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        let mut entries = vec![
            entry(0, 0, [0xd, ebx, ecx, edx]),
            entry(0x8000_0001, 0, [0; 4]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
            entry(0x8000_001e, 0, [5, 0x105, 0x300, 0]),
        ];
        set_topology(&mut entries, 4, 3);
        assert_eq!(
            find(&entries, 0x8000_0001, 0).ecx,
            LEAF8000_0001_ECX_CMP_LEGACY
        );
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x2003);
        assert_eq!(
            find(&entries, 0x8000_001e, 0),
            entry(0x8000_001e, 0, [3, 3, 0, 0])
        );
        assert!(
            entries.iter().all(|e| e.function != 0x1f),
            "beyond the highest leaf"
        );
    }
}
