//! The machine as source and destination must agree on it.

use migration::observation::{Observation, Side};
use migration::vm::MachineDescription;
use serde::{Deserialize, Serialize};

use crate::boot::refusal::KvmBackend;
use crate::cpuid::CpuidLeaf;
use crate::memory::{self, PageBacking};

/// Most vCPUs of a machine.
pub const MAX_CPUS: u32 = crate::config::MAX_CPUS as u32;
/// Most disks of a machine: the virtio slots less console and rng.
pub const MAX_DISKS: usize = 15;

/// A disk as the guest and the destination know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Identity on the command line and for the guest (virtio-blk serial).
    pub id: String,
    /// Path of the image at the source; the destination's unless it was given another.
    pub path: String,
    /// Whether the guest may only read.
    pub access: DiskAccess,
    /// Size in bytes.
    pub size: u64,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAccess {
    /// Read and write.
    ReadWrite,
    /// Read only.
    ReadOnly,
}

/// Everything that the destination must build alike; JSON in the negotiation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Pages that back it.
    pub pages: PageBacking,
    /// CPUID of each vCPU.
    pub cpuid: Vec<Vec<CpuidLeaf>>,
    /// KVM backend that the guest runs on.
    pub backend: KvmBackend,
    /// Disks, in the order of their slots.
    pub disks: Vec<DiskSpec>,
}

impl MachineSpec {
    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        u32::try_from(self.cpuid.len()).unwrap_or(u32::MAX)
    }

    /// The description that travels.
    pub fn describe(&self, name: &str) -> Result<MachineDescription, Observation> {
        let machine = serde_json::to_string(self)
            .map_err(|e| Observation::from_error(Side::Source, "machine.describe", &e))?;
        Ok(MachineDescription {
            name: name.to_owned(),
            ram: memory::layout(self.memory),
            machine,
        })
    }

    /// Reads a description and checks all that can be checked without this host.
    pub fn from_description(description: &MachineDescription) -> Result<Self, Observation> {
        let refuse =
            |message: String| Observation::new(Side::Destination, "negotiate.machine", message);
        let spec: Self = serde_json::from_str(&description.machine)
            .map_err(|e| refuse(format!("the machine's description cannot be read: {e}")))?;
        if spec.cpuid.is_empty() || spec.cpus() > MAX_CPUS {
            return Err(refuse(format!(
                "{} vCPUs are not 1 to {MAX_CPUS}",
                spec.cpuid.len()
            )));
        }
        if spec.disks.len() > MAX_DISKS {
            return Err(refuse(format!(
                "{} disks are more than {MAX_DISKS}",
                spec.disks.len()
            )));
        }
        if description.ram != memory::layout(spec.memory) {
            return Err(refuse(
                "the RAM layout is not one that this version makes".into(),
            ));
        }
        Ok(spec)
    }
}
