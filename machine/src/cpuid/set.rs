//! A set of CPU features: one bit mask for each of the words that hold features.

use std::fmt;

use super::features::{FeatureWord, Register, WORDS};
use super::leaf::CpuidLeaf;

/// What cannot work without what; `(feature, needs)`.
#[rustfmt::skip]
const NEEDS: &[(&str, &str)] = &[
    ("sse3", "sse2"), ("ssse3", "sse3"), ("sse4_1", "ssse3"), ("sse4_2", "sse4_1"), ("sse4a", "sse3"),
    ("aes", "sse2"), ("pclmulqdq", "sse2"), ("sha_ni", "sse2"), ("gfni", "sse2"),
    ("avx", "xsave"), ("xsaveopt", "xsave"), ("xsavec", "xsave"), ("xgetbv1", "xsave"),
    ("xsaves", "xsave"), ("xfd", "xsave"), ("pku", "xsave"), ("mpx", "xsave"),
    ("f16c", "avx"), ("fma", "avx"), ("avx2", "avx"), ("xop", "avx"), ("fma4", "avx"),
    ("vaes", "avx"), ("vpclmulqdq", "avx"), ("avx_vnni", "avx2"),
    ("avx_vnni_int8", "avx2"), ("avx_ne_convert", "avx2"),
    ("avx512f", "avx2"), ("avx512dq", "avx512f"), ("avx512ifma", "avx512f"),
    ("avx512pf", "avx512f"), ("avx512er", "avx512f"), ("avx512cd", "avx512f"),
    ("avx512bw", "avx512f"), ("avx512vl", "avx512f"), ("avx512vbmi", "avx512f"),
    ("avx512_vbmi2", "avx512f"), ("avx512_vnni", "avx512f"), ("avx512_bitalg", "avx512f"),
    ("avx512_vpopcntdq", "avx512f"), ("avx512_bf16", "avx512f"), ("avx512_fp16", "avx512f"),
    ("avx512_4vnniw", "avx512f"), ("avx512_4fmaps", "avx512f"), ("avx512_vp2intersect", "avx512f"),
    ("amx_tile", "xsave"), ("amx_bf16", "amx_tile"), ("amx_int8", "amx_tile"),
    ("invpcid", "pcid"), ("xsaveerptr", "fxsr_opt"),
];

/// Components of the XSAVE area (bits of XCR0) and the feature that they belong to.
const COMPONENTS: &[(u32, &str)] = &[
    (0x3, "xsave"),
    (0x4, "avx"),
    (0x18, "mpx"),
    (0xe0, "avx512f"),
    (0x200, "pku"),
    (0x6_0000, "amx_tile"),
];

/// One feature: a bit of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bit {
    word: usize,
    mask: u32,
}

impl Bit {
    /// The feature that is called so, by its usual name or as `LEAF:INDEX:REGISTER:BIT`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::named(text).or_else(|| Self::placed(text))
    }

    fn named(name: &str) -> Option<Self> {
        // States are not asked for: they follow the features that have them.
        WORDS
            .iter()
            .enumerate()
            .filter(|(_, word)| word.function != 0xd || word.index != 0)
            .find_map(|(index, word)| {
                let bit = word
                    .names
                    .iter()
                    .position(|n| !n.is_empty() && *n == name)?;
                let mask = 1 << bit;
                (mask & word.mask != 0).then_some(Self { word: index, mask })
            })
    }

    /// `0x7:0:ebx:5`
    fn placed(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let mut number = || {
            let part = parts.next()?;
            match part.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => part.parse().ok(),
            }
        };
        let (function, index) = (number()?, number()?);
        let (register, bit) = (parts.next()?, parts.next()?.parse::<u32>().ok()?);
        let mask = 1_u32.checked_shl(bit)?;
        if parts.next().is_some() {
            return None;
        }
        let word = WORDS.iter().position(|word| {
            (word.function, word.index) == (function, index) && word.register.name() == register
        })?;
        (mask & WORDS[word].mask != 0).then_some(Self { word, mask })
    }
}

/// A set of features.
#[derive(Clone, PartialEq, Eq)]
pub struct Features([u32; WORDS.len()]);

impl Features {
    pub(super) const NONE: Self = Self([0; WORDS.len()]);

    /// The features of these leaves.
    pub(super) fn of(leaves: &[CpuidLeaf]) -> Self {
        let mut set = Self::NONE;
        for (bits, word) in set.0.iter_mut().zip(WORDS) {
            *bits = word.of(leaves) & word.mask;
        }
        set
    }

    /// Adds features of our own tables, by name.
    pub(super) fn with(mut self, names: &[&str]) -> Self {
        for name in names {
            let bit = Bit::named(name);
            debug_assert!(bit.is_some(), "{name} is no feature");
            if let Some(bit) = bit {
                self.insert(bit);
            }
        }
        self
    }

    pub(super) fn insert(&mut self, bit: Bit) {
        self.0[bit.word] |= bit.mask;
    }

    pub(super) fn remove(&mut self, bit: Bit) {
        self.0[bit.word] &= !bit.mask;
    }

    pub(super) fn has(&self, bit: Bit) -> bool {
        self.0[bit.word] & bit.mask != 0
    }

    pub(super) fn has_named(&self, name: &str) -> bool {
        Bit::named(name).is_some_and(|bit| self.has(bit))
    }

    /// Whether there is none.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// What is here and not there.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = self.clone();
        for (bits, others) in left.0.iter_mut().zip(&other.0) {
            *bits &= !others;
        }
        left
    }

    /// What is here and there.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (bits, others) in both.0.iter_mut().zip(&other.0) {
            *bits &= others;
        }
        both
    }

    /// The set without what has its state in XSAVE components that `xcr0` lacks.
    ///
    /// KVM tells of AMX on a host whose processes may not use its state: it is no feature of guests
    /// there.
    #[must_use]
    pub(super) fn within(mut self, xcr0: u32) -> Self {
        for (states, feature) in COMPONENTS {
            if let (Some(feature), true) = (Bit::named(feature), states & !xcr0 != 0) {
                self.remove(feature);
            }
        }
        self
    }

    /// The set without what cannot work in it, and with the states that its features have.
    #[must_use]
    pub(super) fn consistent(mut self) -> Self {
        loop {
            let before = self.clone();
            for (feature, needs) in NEEDS {
                if let (Some(feature), false) = (Bit::named(feature), self.has_named(needs)) {
                    self.remove(feature);
                }
            }
            if self == before {
                break;
            }
        }
        let states = COMPONENTS
            .iter()
            .filter(|(_, feature)| self.has_named(feature))
            .fold(0, |states, (bits, _)| states | bits);
        for (bits, word) in self.0.iter_mut().zip(WORDS) {
            if word.is(0xd, 0, Register::Eax) {
                *bits = states;
            }
            // Supervisor states are managed by XSAVES alone.
            if word.is(0xd, 0, Register::Edx) {
                *bits = 0;
            }
        }
        if !self.has_named("xsaves") {
            for (bits, word) in self.0.iter_mut().zip(WORDS) {
                if word.is(0xd, 1, Register::Ecx) || word.is(0xd, 1, Register::Edx) {
                    *bits = 0;
                }
            }
        }
        self
    }

    /// What the feature itself needs and the set does not have.
    pub(super) fn lacks_for(&self, feature: &str) -> Vec<&'static str> {
        NEEDS
            .iter()
            .filter(|(name, needs)| *name == feature && !self.has_named(needs))
            .map(|(_, needs)| *needs)
            .collect()
    }

    /// Lets AMD's repetition of leaf 1 edx in leaf 0x80000001 edx follow what is repeated.
    pub(super) fn repeat(&mut self, mask: u32) {
        let index = |function| {
            WORDS
                .iter()
                .position(|word| word.is(function, 0, Register::Edx))
        };
        if let (Some(from), Some(to)) = (index(1), index(0x8000_0001)) {
            self.0[to] = self.0[to] & !mask | self.0[from] & mask;
        }
    }

    /// Each word with its bits.
    pub(super) fn words(&self) -> impl Iterator<Item = (&'static FeatureWord, u32)> + '_ {
        WORDS.iter().zip(self.0)
    }

    /// States of the XSAVE area, as bits of XCR0.
    pub(super) fn xcr0(&self) -> u32 {
        self.words()
            .find(|(word, _)| word.is(0xd, 0, Register::Eax))
            .map_or(0, |(_, bits)| bits)
    }

    /// Each feature by its usual name and its place: `avx (cpuid 0x1:0 ecx bit 28)`.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (word, bits) in self.words() {
            for bit in (0..32).filter(|bit| bits >> bit & 1 != 0) {
                let place = format!(
                    "cpuid {:#x}:{} {} bit {bit}",
                    word.function,
                    word.index,
                    word.register.name()
                );
                names.push(match word.names.get(bit) {
                    Some(name) if !name.is_empty() => format!("{name} ({place})"),
                    _ => place,
                });
            }
        }
        names
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl FeatureWord {
    pub(super) fn of(&self, leaves: &[CpuidLeaf]) -> u32 {
        leaves
            .iter()
            .find(|leaf| leaf.function == self.function && leaf.index == self.index)
            .map_or(0, |leaf| *self.register.of(leaf))
    }

    fn is(&self, function: u32, index: u32, register: Register) -> bool {
        (self.function, self.index, self.register) == (function, index, register)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Features {
        Features::NONE.with(names)
    }

    #[test]
    fn feature_whose_state_is_not_there_goes_with_what_needs_it() {
        let some = set(&["xsave", "avx", "amx_tile", "amx_int8", "sse2"]);
        let left = some.within(0x7).consistent();
        assert_eq!(left.xcr0(), 0x7);
        assert!(
            left.has_named("avx") && !left.has_named("amx_tile") && !left.has_named("amx_int8")
        );
        let none = left.within(0).consistent();
        assert_eq!(none.xcr0(), 0);
        assert!(none.has_named("sse2") && !none.has_named("xsave"));
    }

    #[test]
    fn every_name_in_the_rules_is_a_feature() {
        let rules = NEEDS.iter().flat_map(|(a, b)| [*a, *b]);
        for name in rules.chain(COMPONENTS.iter().map(|(_, name)| *name)) {
            assert!(Bit::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_feature_is_found_by_its_name_and_by_its_place() {
        let avx2 = Bit::parse("avx2").unwrap();
        for place in ["0x7:0:ebx:5", "7:0:ebx:5"] {
            assert_eq!(Bit::parse(place), Some(avx2), "{place}");
        }
        for garbage in [
            "",
            "avx3",
            "AVX state",
            "osxsave",
            "7:0:ebx",
            "7:0:ebx:32",
            "7:0:ebx:5:1",
            "7:0:esi:5",
            "0x1:0:ecx:27",
            "0x99:0:eax:1",
            "-7:0:ebx:5",
        ] {
            assert_eq!(Bit::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn what_cannot_work_without_another_goes_with_it() {
        let full = set(&["sse2", "sse3", "xsave", "avx", "fma", "avx2", "avx512f"]);
        let mut less = full.clone();
        less.remove(Bit::named("xsave").unwrap());
        assert_eq!(less.consistent(), set(&["sse2", "sse3"]));
        assert_eq!(full.consistent().xcr0(), 0xe7);
        assert_eq!(set(&["xsave", "avx"]).consistent().xcr0(), 0x7);
        assert_eq!(set(&["avx"]).lacks_for("avx2"), Vec::<&str>::new());
        assert_eq!(set(&[]).lacks_for("avx2"), ["avx"]);
    }

    #[test]
    fn names_tell_the_place_too() {
        assert_eq!(set(&["avx"]).names(), ["avx (cpuid 0x1:0 ecx bit 28)"]);
        let unnamed = Bit::parse("0x7:0:edx:6").unwrap();
        let mut one = set(&[]);
        one.insert(unnamed);
        assert_eq!(one.names(), ["cpuid 0x7:0 edx bit 6"]);
    }
}
