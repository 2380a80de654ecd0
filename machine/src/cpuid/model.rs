//! CPU models: what of a host's CPU a guest may see, and the CPUID that says so.

use std::fmt;

use super::leaf::{CpuidLeaf, KVM_SIGNATURE, is_amd, vendor};
use super::level::Level;
use super::set::{Bit, Features};

/// Fewest bits of physical address that a level's guest is told: what the smallest 64-bit hosts have.
const FEWEST_ADDRESS_BITS: u32 = 39;
const VIRTUAL_ADDRESS_BITS: u32 = 48;
/// Highest leaves of a level.
const HIGHEST: u32 = 0xd;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
/// Leaves of the host that a level keeps: those that tell of caches, and those that are rewritten.
const KEPT: &[u32] = &[
    0,
    1,
    2,
    4,
    6,
    7,
    0xd,
    KVM_SIGNATURE,
    KVM_SIGNATURE + 1,
    0x8000_0000,
    0x8000_0001,
    0x8000_0005,
    0x8000_0006,
    0x8000_0008,
];
/// Legacy area and header of XSAVE, which are always there.
const XSAVE_HEAD: u32 = 576;
const XSAVE: u32 = 0xd;
/// AMD repeats these bits of leaf 1 edx in leaf 0x80000001 edx.
const AMD_REPEATED: u32 = 0x0183_f3ff;

/// Where a model begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// What KVM on the host offers.
    Host,
    /// A level.
    Level(Level),
}

/// What a guest's CPU is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub(super) name: String,
    pub(super) base: Base,
    /// Features beyond the base, and how they were written.
    pub(super) add: Vec<(Bit, String)>,
    /// Features of the base that are left out.
    pub(super) remove: Vec<Bit>,
}

/// A model that a host cannot offer: the features that it lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CPU model {model} needs what {host} lacks: {}", lacks.join(", "))]
pub struct Unavailable {
    model: String,
    host: String,
    lacks: Vec<String>,
}

impl Model {
    /// What KVM on the host offers.
    pub fn host() -> Self {
        Self::of_base("host", Base::Host)
    }

    /// A microarchitecture level.
    pub fn level(level: Level) -> Self {
        Self::of_base(level.name(), Base::Level(level))
    }

    fn of_base(name: &str, base: Base) -> Self {
        Self {
            name: name.to_owned(),
            base,
            add: Vec::new(),
            remove: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn is_plain_host(&self) -> bool {
        self.base == Base::Host && self.add.is_empty() && self.remove.is_empty()
    }

    /// What a guest of this model has on a host with `supported`, which may lack some of it.
    fn wanted(&self, supported: &Features) -> Features {
        let mut wanted = match self.base {
            Base::Host => supported.clone().within(supported.xcr0()),
            Base::Level(level) => level.features(),
        };
        for (bit, _) in &self.add {
            wanted.insert(*bit);
        }
        for bit in &self.remove {
            wanted.remove(*bit);
        }
        wanted.consistent()
    }

    /// Features that the model adds and that do not work in it, with what they need.
    pub(super) fn unsupported_additions(&self) -> Vec<String> {
        let Base::Level(level) = self.base else {
            return Vec::new();
        };
        let mut all = level.features();
        for (bit, _) in &self.add {
            all.insert(*bit);
        }
        self.add
            .iter()
            .filter_map(|(_, name)| {
                let needs = all.lacks_for(name);
                (!needs.is_empty()).then(|| format!("{name} needs {}", needs.join(" and ")))
            })
            .collect()
    }

    /// What is left of a host's leaves where the model is the most that the host is to offer.
    pub(crate) fn limit(&self, supported: &[CpuidLeaf]) -> Vec<CpuidLeaf> {
        if self.is_plain_host() {
            return supported.to_vec();
        }
        let has = Features::of(supported);
        let mut wanted = self.wanted(&has);
        repeat_for_amd(&mut wanted, supported);
        let left = wanted.and(&has).within(has.xcr0()).consistent();
        let mut leaves = supported.to_vec();
        write_features(&mut leaves, &left);
        write_xsave(&mut leaves, supported, left.xcr0());
        leaves
    }

    /// The leaves of a guest with RAM up to `ram_end`, topology aside.
    ///
    /// # Errors
    /// The host that is called `host` has not all that the model needs.
    pub(crate) fn leaves(
        &self,
        supported: &[CpuidLeaf],
        host: &str,
        ram_end: u64,
    ) -> Result<Vec<CpuidLeaf>, Unavailable> {
        if self.is_plain_host() {
            return Ok(supported.to_vec());
        }
        let has = Features::of(supported);
        let mut wanted = self.wanted(&has);
        repeat_for_amd(&mut wanted, supported);
        let mut lacks = wanted.minus(&has).names();
        let address_bits = address_bits(ram_end);
        if let Base::Level(_) = self.base {
            let here = find(supported, 0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
            if here < address_bits {
                lacks.push(format!(
                    "{address_bits} bits of physical address (there are {here})"
                ));
            }
        }
        if !lacks.is_empty() {
            return Err(Unavailable {
                model: self.name.clone(),
                host: host.to_owned(),
                lacks,
            });
        }
        let mut leaves = supported.to_vec();
        if let Base::Level(_) = self.base {
            leaves.retain(|leaf| KEPT.contains(&leaf.function));
            leaves.retain(|leaf| leaf.function != 7 || leaf.index == 0);
        }
        write_features(&mut leaves, &wanted);
        write_xsave(&mut leaves, supported, wanted.xcr0());
        if let Base::Level(_) = self.base {
            sign(&mut leaves, &self.name, address_bits);
        }
        Ok(leaves)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn find(leaves: &[CpuidLeaf], function: u32) -> Option<&CpuidLeaf> {
    leaves.iter().find(|leaf| leaf.function == function)
}

/// Bits that address all RAM, and at least those of a level.
fn address_bits(ram_end: u64) -> u32 {
    let bits = u64::BITS - ram_end.saturating_sub(1).leading_zeros();
    bits.max(FEWEST_ADDRESS_BITS)
}

fn repeat_for_amd(features: &mut Features, supported: &[CpuidLeaf]) {
    if is_amd(supported) {
        features.repeat(AMD_REPEATED);
    }
}

/// Sets every word of features; what else is in the same registers stays.
fn write_features(leaves: &mut Vec<CpuidLeaf>, features: &Features) {
    for (word, bits) in features.words() {
        let place = leaves
            .iter_mut()
            .find(|leaf| leaf.function == word.function && leaf.index == word.index);
        match place {
            Some(leaf) => {
                let register = word.register.of_mut(leaf);
                *register = *register & !word.mask | bits;
            }
            None if bits == 0 => {}
            None => {
                let mut leaf = CpuidLeaf {
                    function: word.function,
                    index: word.index,
                    flags: u32::from(matches!(word.function, 7 | XSAVE)),
                    ..CpuidLeaf::default()
                };
                *word.register.of_mut(&mut leaf) = bits;
                leaves.push(leaf);
            }
        }
    }
    // AMD's description of topology by leaves of its own.
    if !features.has_named("topoext") {
        leaves.retain(|leaf| !matches!(leaf.function, 0x8000_001d | 0x8000_001e));
    }
}

/// Makes leaf 0xd tell of the states in `xcr0` and of no other.
fn write_xsave(leaves: &mut Vec<CpuidLeaf>, supported: &[CpuidLeaf], xcr0: u32) {
    let supervisor = leaves
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (XSAVE, 1))
        .map_or(0, |leaf| leaf.ecx);
    let in_use = |leaf: &CpuidLeaf| match leaf.index {
        0 => xcr0 != 0,
        1 => xcr0 != 0 && leaf.eax != 0,
        2..=31 => (xcr0 | supervisor) >> leaf.index & 1 != 0,
        _ => false,
    };
    leaves.retain(|leaf| leaf.function != XSAVE || in_use(leaf));
    let size = supported
        .iter()
        .filter(|leaf| leaf.function == XSAVE && (2..32).contains(&leaf.index))
        .filter(|leaf| xcr0 >> leaf.index & 1 != 0)
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax))
        .fold(XSAVE_HEAD, u32::max);
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == XSAVE) {
        if leaf.index == 0 {
            // The size of what is enabled follows the guest's XCR0; KVM keeps it.
            (leaf.ebx, leaf.ecx) = (XSAVE_HEAD, size);
        }
    }
}

/// Makes the CPU look the same on every host of its vendor: signature, name, highest leaves, width of
/// addresses.
fn sign(leaves: &mut Vec<CpuidLeaf>, name: &str, address_bits: u32) {
    // An old, much used model of the vendor. A kernel believes it to have the flaws of its
    // generation and works around them, which a newer signature would make it not do.
    let signature = match vendor(leaves).as_str() {
        "AuthenticAMD" => Some(0x0080_0f12),
        "HygonGenuine" => Some(0x0090_0f02),
        "GenuineIntel" => Some(0x0005_0654),
        _ => None,
    };
    let amd = is_amd(leaves);
    for leaf in leaves.iter_mut() {
        match leaf.function {
            0 => leaf.eax = HIGHEST,
            1 => {
                leaf.eax = signature.unwrap_or(leaf.eax);
                leaf.ebx &= 0xff00;
            }
            7 => leaf.eax = 0,
            0x8000_0000 => leaf.eax = HIGHEST_EXTENDED,
            0x8000_0001 => {
                leaf.ebx = 0;
                leaf.eax = match signature {
                    Some(signature) if amd => signature,
                    Some(_) => 0,
                    None => leaf.eax,
                };
            }
            0x8000_0008 => {
                leaf.eax = VIRTUAL_ADDRESS_BITS << 8 | address_bits;
                (leaf.ecx, leaf.edx) = (0, 0);
            }
            _ => {}
        }
    }
    let mut text = [0_u8; 48];
    for (to, from) in text
        .iter_mut()
        .take(47)
        .zip(format!("{name} virtual CPU").bytes())
    {
        *to = if from.is_ascii_graphic() { from } else { b' ' };
    }
    for (function, part) in (0x8000_0002..).zip(text.as_chunks::<16>().0) {
        let [eax, ebx, ecx, edx] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes([part[at], part[at + 1], part[at + 2], part[at + 3]]));
        leaves.push(CpuidLeaf {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..CpuidLeaf::default()
        });
    }
}
