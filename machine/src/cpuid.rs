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
mod leaf;
mod level;
mod model;
mod model_file;
mod set;
#[cfg(test)]
mod tests;
mod topology;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

pub use compare::missing;
use features::HIDDEN;
use leaf::KVM_SIGNATURE;
pub use leaf::{CpuidError, CpuidLeaf, from_leaves, leaves};
pub use level::Level;
pub use model::{Model, Unavailable};
use topology::set_topology;

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;

/// The feature leaf of KVM's own interface; no other hypervisor leaf than it and the signature is offered.
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

/// What a host can offer to guests.
#[derive(Debug, Clone)]
pub struct HostCpu {
    leaves: Vec<CpuidLeaf>,
    /// The host, and what its operator makes it offer at most.
    described: String,
}

impl HostCpu {
    /// What KVM supports here, and of that at most what `limit` says.
    ///
    /// # Errors
    /// KVM does not say what it supports.
    pub fn probe(kvm: &Kvm, limit: Option<&Model>) -> Result<Self, CpuidError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let mut leaves = leaves(&cpuid);
        hide(&mut leaves, tsc_deadline);
        Ok(match limit {
            None => Self {
                leaves,
                described: "this host".into(),
            },
            Some(model) => Self {
                leaves: model.limit(&leaves),
                described: format!("this host, which offers at most {model},"),
            },
        })
    }

    /// Its leaves; [`missing`] compares against them.
    pub fn leaves(&self) -> &[CpuidLeaf] {
        &self.leaves
    }

    /// How it is called in messages.
    pub fn described(&self) -> &str {
        &self.described
    }

    /// The leaves of each of `cpus` CPUs of a guest of `model` with RAM up to `ram_end`.
    ///
    /// # Errors
    /// The features that the host lacks.
    pub fn guest(
        &self,
        model: &Model,
        cpus: u32,
        ram_end: u64,
    ) -> Result<Vec<Vec<CpuidLeaf>>, Unavailable> {
        let leaves = model.leaves(&self.leaves, &self.described, ram_end)?;
        let cpu = |index| {
            let mut leaves = leaves.clone();
            set_topology(&mut leaves, cpus, index);
            leaves
        };
        Ok((0..cpus).map(cpu).collect())
    }
}

/// The `host` model for CPU `index` of `cpus`.
///
/// # Errors
/// KVM does not say what it supports.
pub fn build(kvm: &Kvm, cpus: u32, index: u32) -> Result<CpuId, CpuidError> {
    let mut leaves = HostCpu::probe(kvm, None)?.leaves;
    set_topology(&mut leaves, cpus, index);
    from_leaves(&leaves)
}

/// Hides what a guest of this VMM must not see.
fn hide(entries: &mut Vec<CpuidLeaf>, tsc_deadline: bool) {
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
