//! The microarchitecture levels of x86-64, as CPU models.
//!
//! A level of the psABI says what a program may use; a guest also needs what a kernel and this virtual
//! platform use, which is the same at every level. Nothing else is in: no mitigation bits, which differ
//! between generations, and no KVM interface that a host may be configured without.
//!
//! Source: System V psABI for x86-64, table 3.1 (microarchitecture levels).

use std::fmt;
use std::str::FromStr;

use super::set::Features;

/// A microarchitecture level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The baseline: any x86-64 CPU.
    V1,
    /// Around 2009: up to SSE 4.2.
    V2,
    /// Around 2015: AVX2, BMI, FMA.
    V3,
    /// AVX-512 as servers have it.
    V4,
}

/// What a kernel and this platform use at any level; KVM provides the virtual ones on every CPU. Not VME,
/// which speeds up 16-bit programs only, and which not every host has: an emulated CPU has not.
#[rustfmt::skip]
const PLATFORM: &[&str] = &[
    "de", "pse", "tsc", "msr", "pae", "mce", "apic", "sep", "mtrr", "pge", "mca", "pat",
    "pse36", "clflush",
    "x2apic", "tsc_deadline_timer", "hypervisor", "arat", "tsc_adjust",
    "nx", "lm",
    "kvmclock", "kvm_nopiodelay", "kvmclock2", "kvm_pv_eoi", "kvm_pv_unhalt", "kvmclock_stable",
];
const V1: &[&str] = &[
    "fpu", "cx8", "cmov", "mmx", "fxsr", "sse", "sse2", "syscall",
];
const V2: &[&str] = &[
    "cx16", "lahf_lm", "popcnt", "sse3", "ssse3", "sse4_1", "sse4_2",
];
#[rustfmt::skip]
const V3: &[&str] = &[
    "xsave", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe",
];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

impl Level {
    /// All of them, the lowest first.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64-v1",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// What a guest of this level may use, and its host must have.
    pub(super) fn features(self) -> Features {
        let mut set = Features::NONE.with(PLATFORM);
        for (level, names) in [
            (Self::V1, V1),
            (Self::V2, V2),
            (Self::V3, V3),
            (Self::V4, V4),
        ] {
            if level <= self {
                set = set.with(names);
            }
        }
        set.consistent()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::set::Bit;

    #[test]
    fn every_name_is_a_feature_and_each_level_has_all_of_the_one_below() {
        for name in [PLATFORM, V1, V2, V3, V4].concat() {
            assert!(Bit::parse(name).is_some(), "{name}");
        }
        for pair in Level::ALL.windows(2) {
            let (lower, higher) = (pair[0].features(), pair[1].features());
            assert!(lower.minus(&higher).is_empty(), "{pair:?}");
            assert!(!higher.minus(&lower).is_empty(), "{pair:?}");
        }
    }

    #[test]
    fn levels_have_the_states_of_their_registers() {
        let states = Level::ALL.map(|level| level.features().xcr0());
        assert_eq!(states, [0, 0, 0x7, 0xe7]);
    }

    #[test]
    fn levels_are_what_the_psabi_says() {
        // Bits of leaf 1 ecx, leaf 7 ebx and leaf 0x80000001 ecx, from the SDM, without the platform's.
        let words = |level: Level| {
            let features = level.features();
            let word = |function, index, register: &str| {
                features
                    .words()
                    .find(|(w, _)| {
                        (w.function, w.index, w.register.name()) == (function, index, register)
                    })
                    .map(|(_, bits)| bits)
                    .unwrap()
            };
            [
                word(1, 0, "ecx") & !(1 << 21 | 1 << 24 | 1 << 31),
                word(7, 0, "ebx") & !(1 << 1),
                word(0x8000_0001, 0, "ecx"),
            ]
        };
        let v2 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
        let v3 = v2 | 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29;
        let avx2 = 1 << 3 | 1 << 5 | 1 << 8;
        let avx512 = avx2 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31;
        assert_eq!(words(Level::V1), [0, 0, 0]);
        assert_eq!(words(Level::V2), [v2, 0, 1]);
        assert_eq!(words(Level::V3), [v3, avx2, 1 | 1 << 5]);
        assert_eq!(words(Level::V4), [v3, avx512, 1 | 1 << 5]);
    }
}
