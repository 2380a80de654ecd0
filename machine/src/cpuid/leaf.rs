//! CPUID leaves as they are saved and compared, and what they say of the vendor.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

/// Signature leaf of KVM's own interface.
pub(super) const KVM_SIGNATURE: u32 = 0x4000_0000;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    let too_many = || CpuidError::TooManyLeaves(leaves.len());
    if leaves.len() > KVM_MAX_CPUID_ENTRIES {
        return Err(too_many());
    }
    let entries: Vec<kvm_cpuid_entry2> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
    CpuId::from_entries(&entries).map_err(|_| too_many())
}

pub(super) fn is_amd(leaves: &[CpuidLeaf]) -> bool {
    matches!(vendor(leaves).as_str(), "AuthenticAMD" | "HygonGenuine")
}

/// The vendor's twelve letters; what is no letter is left out, since it may come from a peer.
pub(super) fn vendor(leaves: &[CpuidLeaf]) -> String {
    let Some(leaf) = leaves.iter().find(|e| e.function == 0) else {
        return String::new();
    };
    [leaf.ebx, leaf.edx, leaf.ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect()
}
