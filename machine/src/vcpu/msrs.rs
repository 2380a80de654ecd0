//! Which MSRs a guest has: KVM lists what it could save of any guest, this guest's CPUID says what of it
//! the guest can use.

use crate::cpuid::CpuidLeaf;

/// MSRs of what no guest of this VMM sees: performance counters, processor trace, SGX, SVM, Hyper-V's
/// interface, asynchronous page faults, confidential guests.
#[rustfmt::skip]
const NEVER: &[(u32, u32)] = &[
    (0x8c, 0x8f), (0xc1, 0xc8), (0x186, 0x18d), (0x309, 0x30d), (0x345, 0x345), (0x38d, 0x390),
    (0x3f1, 0x3f2), (0x480, 0x493), (0x4c1, 0x4c8), (0x560, 0x587), (0x600, 0x600),
    (0x14ce, 0x14cf), (0x4000_0000, 0x4000_01ff),
    (0x4b56_4d02, 0x4b56_4d02), (0x4b56_4d06, 0x4b56_4d08),
    (0xc000_0104, 0xc000_0104), (0xc000_0300, 0xc000_0303),
    (0xc001_0000, 0xc001_0007), (0xc001_0117, 0xc001_0117), (0xc001_0200, 0xc001_020b),
];

type Place = (u32, u32, char, u32);

/// MSRs that belong to a feature: from, to, and the bits of CPUID of which one says that it is there.
#[rustfmt::skip]
const OF_FEATURES: &[(u32, u32, &[Place])] = &[
    (0x3b, 0x3b, &[(7, 0, 'b', 1)]),
    (0x48, 0x48, &[
        (7, 0, 'd', 26), (7, 0, 'd', 27), (7, 0, 'd', 31),
        (0x8000_0008, 0, 'b', 14), (0x8000_0008, 0, 'b', 15), (0x8000_0008, 0, 'b', 24),
    ]),
    (0xe1, 0xe1, &[(7, 0, 'c', 5)]),
    (0x10a, 0x10a, &[(7, 0, 'd', 29)]),
    (0x122, 0x122, &[(7, 0, 'd', 29)]),
    (0x1c4, 0x1c5, &[(0xd, 1, 'a', 4)]),
    (0x6a0, 0x6a8, &[(7, 0, 'c', 7), (7, 0, 'd', 20)]),
    (0x6e0, 0x6e0, &[(1, 0, 'c', 24)]),
    (0xd90, 0xd90, &[(7, 0, 'b', 14)]),
    (0xda0, 0xda0, &[(0xd, 1, 'a', 3)]),
    (0x4b56_4d03, 0x4b56_4d03, &[(0x4000_0001, 0, 'a', 5)]),
    (0x4b56_4d04, 0x4b56_4d04, &[(0x4000_0001, 0, 'a', 6)]),
    (0x4b56_4d05, 0x4b56_4d05, &[(0x4000_0001, 0, 'a', 12)]),
    (0xc000_0103, 0xc000_0103, &[(0x8000_0001, 0, 'd', 27), (7, 0, 'c', 22)]),
    (0xc001_011f, 0xc001_011f, &[(0x8000_0008, 0, 'b', 25)]),
];

#[rustfmt::skip]
const NAMES: &[(u32, &str)] = &[
    (0x10, "TSC"), (0x3b, "TSC_ADJUST"), (0x48, "SPEC_CTRL"), (0x8b, "UCODE_REV"),
    (0xce, "PLATFORM_INFO"), (0xe1, "UMWAIT_CONTROL"), (0x10a, "ARCH_CAPABILITIES"),
    (0x122, "TSX_CTRL"), (0x140, "MISC_FEATURES_ENABLES"), (0x174, "SYSENTER_CS"),
    (0x175, "SYSENTER_ESP"), (0x176, "SYSENTER_EIP"), (0x1a0, "MISC_ENABLE"), (0x1c4, "XFD"),
    (0x1c5, "XFD_ERR"), (0x1d9, "DEBUGCTL"), (0x277, "PAT"), (0x6e0, "TSC_DEADLINE"),
    (0xd90, "BNDCFGS"), (0xda0, "XSS"), (0x4b56_4d00, "KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "KVM_SYSTEM_TIME_NEW"), (0x4b56_4d03, "KVM_STEAL_TIME"),
    (0x4b56_4d04, "KVM_PV_EOI_EN"), (0x4b56_4d05, "KVM_POLL_CONTROL"), (0xc000_0103, "TSC_AUX"),
    (0xc001_0015, "HWCR"), (0xc001_011f, "VIRT_SPEC_CTRL"), (0xc001_1029, "DE_CFG"),
];

/// Whether a guest with these leaves can have put anything into this MSR.
pub fn is_of_guest(index: u32, leaves: &[CpuidLeaf]) -> bool {
    let within = |from: u32, to: u32| (from..=to).contains(&index);
    if NEVER.iter().any(|(from, to)| within(*from, *to)) {
        return false;
    }
    OF_FEATURES
        .iter()
        .find(|(from, to, _)| within(*from, *to))
        .is_none_or(|(_, _, features)| features.iter().any(|place| is_set(leaves, *place)))
}

/// Whether CPUID says so: leaf, index, register and bit.
pub fn is_set(leaves: &[CpuidLeaf], (function, index, register, bit): Place) -> bool {
    leaves
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (function, index))
        .is_some_and(|leaf| {
            let word = match register {
                'a' => leaf.eax,
                'b' => leaf.ebx,
                'c' => leaf.ecx,
                _ => leaf.edx,
            };
            word >> bit & 1 != 0
        })
}

/// An MSR as it is told: `MSR XSS (0xda0)`.
pub fn told(index: u32) -> String {
    match NAMES.iter().find(|(known, _)| *known == index) {
        Some((_, name)) => format!("MSR {name} ({index:#x})"),
        None => format!("MSR {index:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_of_what_the_guest_does_not_see_are_not_its() {
        let leaf = |function, edx| CpuidLeaf {
            function,
            edx,
            ..CpuidLeaf::default()
        };
        let bare = [leaf(7, 0)];
        let able = [leaf(7, 1 << 26 | 1 << 29)];
        for (index, without, with) in [
            (0x174, true, true),
            (0x48, false, true),
            (0x10a, false, true),
            (0x186, false, false),
            (0x4000_0021, false, false),
            (0x4b56_4d01, true, true),
            (0xda0, false, false),
        ] {
            assert_eq!(is_of_guest(index, &bare), without, "{index:#x}");
            assert_eq!(is_of_guest(index, &able), with, "{index:#x}");
        }
    }

    #[test]
    fn an_msr_is_told_by_name_and_number() {
        assert_eq!(told(0xda0), "MSR XSS (0xda0)");
        assert_eq!(told(0x999), "MSR 0x999");
    }
}
