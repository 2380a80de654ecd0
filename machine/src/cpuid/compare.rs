//! What a guest has seen of its CPU and a host lacks.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

use super::leaf::{CpuidLeaf, vendor};
use super::set::Features;

/// Index 0 and 1 of leaf 0xd tell of features; from 2 on, each tells where a component lies.
const XSAVE: u32 = 0xd;
const FIRST_XSAVE_COMPONENT: u32 = 2;

/// What a guest that was given `wanted` would miss on a host that has `have`: features by name and
/// place, and what else does not fit. Empty if the guest can go there.
///
/// `have` is what [`super::HostCpu::leaves`] tells. Leaves that describe the topology are not compared:
/// the destination gives the guest the ones that it had.
pub fn missing(wanted: &[CpuidLeaf], have: &[CpuidLeaf]) -> Vec<String> {
    // The list may come from a peer.
    if wanted.len() > KVM_MAX_CPUID_ENTRIES {
        return vec![format!(
            "{} CPUID leaves (KVM takes {KVM_MAX_CPUID_ENTRIES})",
            wanted.len()
        )];
    }
    // Features of one vendor mean little at the other: nothing else is worth saying.
    let vendor_wanted = vendor(wanted);
    let vendor_here = vendor(have);
    if vendor_wanted != vendor_here {
        return vec![format!(
            "a CPU by {vendor_wanted} (this one is by {vendor_here})"
        )];
    }
    let mut lacks = Features::of(wanted).minus(&Features::of(have)).names();
    missing_components(wanted, have, &mut lacks);
    missing_address_bits(wanted, have, &mut lacks);
    lacks
}

fn find(leaves: &[CpuidLeaf], function: u32, index: u32) -> Option<&CpuidLeaf> {
    leaves
        .iter()
        .find(|leaf| leaf.function == function && leaf.index == index)
}

/// The guest has computed where each XSAVE component lies: it must lie there on the next host, too.
fn missing_components(wanted: &[CpuidLeaf], have: &[CpuidLeaf], lacks: &mut Vec<String>) {
    let components = wanted.iter().filter(|leaf| {
        leaf.function == XSAVE && (FIRST_XSAVE_COMPONENT..64).contains(&leaf.index) && leaf.eax != 0
    });
    for leaf in components {
        // A component that is not there at all was reported as a missing feature.
        if let Some(here) = find(have, XSAVE, leaf.index)
            && here.eax != 0
            && (here.eax, here.ebx) != (leaf.eax, leaf.ebx)
        {
            lacks.push(format!(
                "XSAVE component {} of {} bytes at offset {} (here {} bytes at offset {})",
                leaf.index, leaf.eax, leaf.ebx, here.eax, here.ebx
            ));
        }
    }
}

/// A guest may put its page tables' reserved bits and its mappings to the test.
fn missing_address_bits(wanted: &[CpuidLeaf], have: &[CpuidLeaf], lacks: &mut Vec<String>) {
    let of = |leaves| find(leaves, 0x8000_0008, 0).map_or(0, |leaf| leaf.eax);
    for (what, shift) in [("physical", 0), ("virtual", 8)] {
        let bits = |leaves| of(leaves) >> shift & 0xff;
        let (needs, here) = (bits(wanted), bits(have));
        if needs > here {
            lacks.push(format!("{needs} bits of {what} address (here {here})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::entry;

    const INTEL: [u32; 4] = [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];

    fn lacking(wanted: &[CpuidLeaf], have: &[CpuidLeaf]) -> Vec<String> {
        missing(wanted, have)
    }

    #[test]
    fn features_are_named_or_told_by_register_and_bit() {
        let wanted = [
            entry(0, 0, INTEL),
            entry(1, 0, [0, 0x0204_0800, 1 << 28 | 1 << 27, 1 << 28]),
            entry(7, 0, [0, 1 << 5 | 1 << 16, 0, 1 << 7]),
            entry(0x8000_0008, 0, [0x3930, 0, 0, 0]),
        ];
        let have = [
            entry(0, 0, INTEL),
            entry(1, 0, [0, 0, 0, 0]),
            entry(7, 0, [0, 1 << 5 | 1 << 3, 0, 0]),
            entry(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ];
        assert_eq!(
            lacking(&wanted, &have),
            [
                "avx (cpuid 0x1:0 ecx bit 28)",
                "avx512f (cpuid 0x7:0 ebx bit 16)",
                "cpuid 0x7:0 edx bit 7",
                "48 bits of physical address (here 46)",
                "57 bits of virtual address (here 48)"
            ]
        );
        assert!(lacking(&have, &have).is_empty());
    }

    #[test]
    fn another_vendor_is_all_that_is_said() {
        let amd = entry(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        let wanted = [entry(0, 0, INTEL), entry(7, 0, [0, u32::MAX, 0, 0])];
        assert_eq!(
            lacking(&wanted, &[amd]),
            ["a CPU by GenuineIntel (this one is by AuthenticAMD)"]
        );
    }

    #[test]
    fn more_leaves_than_kvm_takes_are_not_compared() {
        let wanted = vec![entry(0xd, 2, [1, 1, 0, 0]); 10_000];
        assert_eq!(lacking(&wanted, &wanted[..1]).len(), 1);
    }

    #[test]
    fn xsave_components_must_lie_where_they_lay() {
        let wanted = [entry(0, 0, INTEL), entry(0xd, 9, [8, 2688, 0, 0])];
        let have = [entry(0, 0, INTEL), entry(0xd, 9, [8, 2432, 0, 0])];
        assert_eq!(
            lacking(&wanted, &have),
            ["XSAVE component 9 of 8 bytes at offset 2688 (here 8 bytes at offset 2432)"]
        );
    }
}
