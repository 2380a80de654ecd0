//! What CPU the guest sees, and whether a host can offer a CPU that a guest has seen elsewhere.
//!
//! The `host` model is what KVM supports (`KVM_GET_SUPPORTED_CPUID`), with three changes:
//! - the topology is the VM's: one socket, one thread a core, APIC ids 0 and up;
//! - what cannot move is hidden: nested virtualization, performance counters, SGX, processor trace
//!   and asynchronous page faults have state that is not saved, and an invariant TSC is a promise
//!   that the next host may not keep (guests then use kvmclock, which catches up);
//! - what tells of the host only, or is of no use in a guest (MONITOR), is cleared.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; KVM API 4.46 and
//! `Documentation/virt/kvm/x86/cpuid.rst`.

mod compare;
mod features;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

pub use compare::missing;
use features::{HIDDEN, Register};

const VENDOR_AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
const VENDOR_HYGON: [u32; 3] = [0x6f67_7948, 0x656e_6975, 0x6e65_476e];

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF8000_0001_ECX_CMP_LEGACY: u32 = 1 << 1;

/// Signature leaf and feature leaf of KVM's own interface; no other hypervisor leaf is offered.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// kvmclock, both generations and its stability; no I/O delay; steal time; PV EOI, unhalt, TLB
/// flush, IPI, poll control and yield: all of it state that its MSRs carry.
const KVM_FEATURES_KEPT: u32 = 0x0100_3aeb;

/// Leaves that are cleared as a whole: performance counters, SGX, processor trace, SVM, IBS, LWP,
/// memory encryption, AMD performance counters.
const CLEARED_LEAVES: [u32; 8] = [
    0xa,
    0x12,
    0x14,
    0x8000_000a,
    0x8000_001b,
    0x8000_001c,
    0x8000_001f,
    0x8000_0022,
];

/// Why a CPU cannot be described to KVM.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// `KVM_GET_SUPPORTED_CPUID` failed.
    #[error("cannot get the CPUID leaves that KVM supports")]
    Supported(#[source] kvm_ioctls::Error),
    /// More leaves than KVM takes.
    #[error("{0} CPUID leaves are more than KVM takes ({KVM_MAX_CPUID_ENTRIES})")]
    TooManyLeaves(usize),
}

/// One CPUID leaf as it is saved and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidLeaf {
    /// `eax` of the query.
    pub function: u32,
    /// `ecx` of the query.
    pub index: u32,
    /// KVM's flags: bit 0 says that `index` matters.
    pub flags: u32,
    /// Answer in `eax`.
    pub eax: u32,
    /// Answer in `ebx`.
    pub ebx: u32,
    /// Answer in `ecx`.
    pub ecx: u32,
    /// Answer in `edx`.
    pub edx: u32,
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            padding: _,
        } = *entry;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        }
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        let CpuidLeaf {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        } = *leaf;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            padding: [0; 3],
        }
    }
}

/// The leaves of a CPUID in a form that can be saved.
pub fn leaves(cpuid: &CpuId) -> Vec<CpuidLeaf> {
    cpuid.as_slice().iter().map(CpuidLeaf::from).collect()
}

/// The CPUID that has these leaves.
///
/// # Errors
/// There are more leaves than KVM takes.
pub fn from_leaves(leaves: &[CpuidLeaf]) -> Result<CpuId, CpuidError> {
    let entries: Vec<kvm_cpuid_entry2> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
    to_cpuid(&entries)
}

fn to_cpuid(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, CpuidError> {
    let too_many = || CpuidError::TooManyLeaves(entries.len());
    if entries.len() > KVM_MAX_CPUID_ENTRIES {
        return Err(too_many());
    }
    CpuId::from_entries(entries).map_err(|_| too_many())
}

/// What this host can offer to a guest; [`missing`] compares against it.
///
/// # Errors
/// KVM does not say what it supports.
pub fn supported(kvm: &Kvm) -> Result<CpuId, CpuidError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(CpuidError::Supported)?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries = cpuid.as_slice().to_vec();
    hide(&mut entries, tsc_deadline);
    to_cpuid(&entries)
}

/// The `host` model for CPU `index` of `cpus`.
///
/// # Errors
/// KVM does not say what it supports.
pub fn build(kvm: &Kvm, cpus: u32, index: u32) -> Result<CpuId, CpuidError> {
    let mut entries = supported(kvm)?.as_slice().to_vec();
    set_topology(&mut entries, cpus, index);
    to_cpuid(&entries)
}

/// Hides what a guest of this VMM must not see.
fn hide(entries: &mut Vec<kvm_cpuid_entry2>, tsc_deadline: bool) {
    entries.retain(|e| !(0x4000_0002..0x8000_0000).contains(&e.function));
    for entry in entries.iter_mut() {
        for &(function, index, register, mask) in HIDDEN {
            if entry.function == function && entry.index == index {
                *register.of_mut(entry) &= !mask;
            }
        }
        match entry.function {
            1 => {
                entry.ecx |= LEAF1_ECX_HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            KVM_SIGNATURE => entry.eax = KVM_FEATURES,
            KVM_FEATURES => {
                entry.eax &= KVM_FEATURES_KEPT;
                // Hints to a guest whose CPUs are its own alone.
                entry.edx = 0;
            }
            function if CLEARED_LEAVES.contains(&function) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
    // KVM answers zero for what is not listed, and takes few entries.
    entries.retain(|e| e.function == 0 || (e.eax, e.ebx, e.ecx, e.edx) != (0, 0, 0, 0));
}

/// One socket of `cpus` cores with one thread each; this is core `index`, its APIC id as well.
fn set_topology(entries: &mut Vec<kvm_cpuid_entry2>, cpus: u32, index: u32) {
    let cpus = cpus.max(1);
    let id_bits = cpus.next_power_of_two().trailing_zeros();
    let max_core_id = (1_u32 << id_bits) - 1;
    let leaf0 = entries.iter().find(|e| e.function == 0).copied();
    let amd = leaf0.is_some_and(|e| {
        let vendor = [e.ebx, e.edx, e.ecx];
        vendor == VENDOR_AMD || vendor == VENDOR_HYGON
    });
    let max_leaf = leaf0.map_or(0, |e| e.eax);

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
                entries.push(kvm_cpuid_entry2 {
                    function,
                    index: level,
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: shift,
                    ebx: count,
                    ecx: level | kind << 8,
                    edx: index,
                    ..Default::default()
                });
            }
        }
    }
}

/// Caches below the third level are a core's own; the third is shared by `sharers` + 1 CPUs.
fn set_cache_sharing(entry: &mut kvm_cpuid_entry2, sharers: u32) {
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

impl Register {
    fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn what_cannot_move_is_hidden() {
        let mut entries = vec![
            entry(1, 0, [0, 0, u32::MAX, u32::MAX]),
            entry(7, 0, [0, u32::MAX, u32::MAX, u32::MAX]),
            entry(0xa, 0, [u32::MAX; 4]),
            entry(0x4000_0000, 0, [0x4000_0010, 1, 2, 3]),
            entry(0x4000_0001, 0, [u32::MAX, 0, 0, 1]),
            entry(0x4000_0010, 0, [u32::MAX; 4]),
            entry(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
        ];
        hide(&mut entries, false);
        let ecx = find(&entries, 1, 0).ecx;
        assert_eq!(
            ecx & (1 << 3 | 1 << 5 | 1 << 27),
            0,
            "MONITOR, VMX or OSXSAVE is there"
        );
        assert_ne!(ecx & LEAF1_ECX_HYPERVISOR, 0);
        assert_eq!(
            find(&entries, 7, 0).ebx & (1 << 2 | 1 << 25),
            0,
            "SGX or PT is there"
        );
        assert!(
            entries.iter().all(|e| e.function != 0xa),
            "performance counters are there"
        );
        assert_eq!(find(&entries, 0x4000_0000, 0).eax, 0x4000_0001);
        let features = find(&entries, 0x4000_0001, 0);
        assert_eq!(features.eax & 0b1001, 0b1001, "kvmclock is missing");
        assert_eq!(
            features.eax & (1 << 4 | 1 << 14),
            0,
            "asynchronous page faults are there"
        );
        assert_eq!(features.edx, 0);
        assert!(entries.iter().all(|e| e.function != 0x4000_0010));
        assert!(
            entries.iter().all(|e| e.function != 0x8000_0007),
            "an invariant TSC is there"
        );
    }

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
        let [ebx, edx, ecx] = VENDOR_AMD;
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

    #[test]
    fn kvm_takes_the_model_and_lacks_nothing_of_it() {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: /dev/kvm cannot be opened: {error}");
                return;
            }
        };
        let vm = kvm.create_vm().unwrap();
        let have = supported(&kvm).unwrap();
        for index in 0..2 {
            let cpuid = build(&kvm, 2, index).unwrap();
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            vcpu.set_cpuid2(&from_leaves(&leaves(&cpuid)).unwrap())
                .unwrap();
            assert_eq!(missing(&leaves(&cpuid), &have), Vec::<String>::new());
        }
    }
}
