//! The machine as source and destination must agree on it.

use std::collections::BTreeSet;

use block::image::Format;
use migration::observation::{Observation, Side};
use migration::vm::MachineDescription;
use serde::{Deserialize, Serialize};

use crate::boot::refusal::KvmBackend;
use crate::config;
use crate::cpuid::CpuidLeaf;
use crate::devices::net::NetSpec;
use crate::memory::{self, PageBacking};

/// Most vCPUs of a machine.
pub const MAX_CPUS: u32 = config::MAX_CPUS as u32;
/// Most disks and network interfaces of a machine: the virtio slots less console and rng.
pub const MAX_PLUGGED: usize = config::MAX_PLUGGED;

/// Most CPUID leaves of a vCPU: what KVM takes.
const MAX_LEAVES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

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
    /// Format of the image. A side that does not know the field knows raw images only, and refuses others.
    #[serde(default, skip_serializing_if = "ImageFormat::is_raw")]
    pub format: ImageFormat,
}

/// Format of a disk's image, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// Raw.
    #[default]
    Raw,
    /// qcow2.
    Qcow2,
}

impl ImageFormat {
    fn is_raw(&self) -> bool {
        *self == Self::Raw
    }
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Raw => Self::Raw,
            ImageFormat::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
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

/// Most MSRs that are told; KVM knows some hundreds.
pub const MAX_MSRS: usize = 4096;

/// What the vCPUs of a guest need of a host beyond CPUID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuDemands {
    /// CPU model that it was started with, for people.
    pub model: String,
    /// Rate of its TSC in kHz; zero where KVM did not know.
    pub tsc_khz: u32,
    /// Bytes of an XSAVE area that it can use, as it is saved.
    pub xsave_bytes: u32,
    /// MSRs that it may have used, which are saved.
    pub msrs: Vec<u32>,
    /// MSRs that promise something to it, with what they promise.
    pub feature_msrs: Vec<(u32, u64)>,
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
    /// What the vCPUs need of a host beyond CPUID.
    pub cpu: CpuDemands,
    /// KVM backend that the guest runs on.
    pub backend: KvmBackend,
    /// Disks, in the order of their slots.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the order of their slots.
    pub nets: Vec<NetSpec>,
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
            disks: None,
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
        let plugged = spec.disks.len() + spec.nets.len();
        if plugged > MAX_PLUGGED {
            return Err(refuse(format!(
                "{plugged} disks and network interfaces are more than {MAX_PLUGGED}"
            )));
        }
        let mut ids = BTreeSet::new();
        for disk in &spec.disks {
            // Before it is shown to anybody: what a peer calls a disk may be anything.
            config::check_disk_id(&disk.id)
                .map_err(|e| refuse("a disk's id cannot be used".into()).caused_by(e))?;
            if !ids.insert(&disk.id) {
                return Err(refuse(format!("two disks have the id {}", disk.id)));
            }
            if !disk.path.starts_with('/') || disk.path.chars().any(char::is_control) {
                let (id, path) = (&disk.id, &disk.path);
                return Err(refuse(format!(
                    "disk {id}: {path:?} is no absolute path that can be shown"
                )));
            }
        }
        for net in &spec.nets {
            net.check().map_err(refuse)?;
            if !ids.insert(&net.id) {
                return Err(refuse(format!("two devices have the id {}", net.id)));
            }
        }
        if let Some(leaves) = spec.cpuid.iter().map(Vec::len).max()
            && leaves > MAX_LEAVES
        {
            return Err(refuse(format!(
                "{leaves} CPUID leaves are more than {MAX_LEAVES}"
            )));
        }
        let msrs = spec.cpu.msrs.len().max(spec.cpu.feature_msrs.len());
        if msrs > MAX_MSRS {
            return Err(refuse(format!("{msrs} MSRs are more than {MAX_MSRS}")));
        }
        if description.ram != memory::layout(spec.memory) {
            return Err(refuse(
                "the RAM layout is not one that this version makes".into(),
            ));
        }
        Ok(spec)
    }
}

/// Which device is in a virtio slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtioId<'a> {
    /// The disk with this id.
    Block(&'a str),
    /// The console.
    Console,
    /// The entropy source.
    Rng,
    /// The network interface with this id.
    Net(&'a str),
}

impl<'a> VirtioId<'a> {
    /// As the slot is called.
    pub fn name(self) -> &'a str {
        match self {
            Self::Block(id) | Self::Net(id) => id,
            Self::Console => "console",
            Self::Rng => "rng",
        }
    }
}

impl MachineSpec {
    /// The devices in the virtio slots, in their order.
    pub fn virtio(&self) -> Vec<VirtioId<'_>> {
        let disks = self.disks.iter().map(|disk| VirtioId::Block(&disk.id));
        let nets = self.nets.iter().map(|net| VirtioId::Net(&net.id));
        let always = [VirtioId::Console, VirtioId::Rng];
        disks.chain(always).chain(nets).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn spec() -> MachineSpec {
        let leaf = CpuidLeaf {
            function: 0,
            index: 0,
            flags: 0,
            eax: 0x1f,
            ebx: 0x756e_6547,
            ecx: 0x6c65_746e,
            edx: 0x4965_6e69,
        };
        let disk = |id: &str| DiskSpec {
            format: ImageFormat::Raw,
            id: id.into(),
            path: format!("/srv/{id}.raw"),
            access: DiskAccess::ReadWrite,
            size: 1 << 30,
        };
        let net = |id: &str| NetSpec {
            id: id.into(),
            tap: format!("tap-{id}"),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            queues: 2,
            mtu: 1500,
            offloads: 0xf,
        };
        MachineSpec {
            memory: 5 << 30,
            pages: PageBacking::Small,
            cpuid: vec![vec![leaf]; 2],
            cpu: CpuDemands {
                model: "x86-64-v2".into(),
                tsc_khz: 2_600_000,
                xsave_bytes: 4096,
                msrs: vec![0x174, 0x6e0],
                feature_msrs: vec![(0x10a, 1)],
            },
            backend: KvmBackend::Amd,
            disks: vec![disk("root"), disk("data")],
            nets: vec![net("net0"), net("net1")],
        }
    }

    fn refusal(change: impl FnOnce(&mut MachineSpec)) -> String {
        let mut changed = spec();
        change(&mut changed);
        let description = changed.describe("guest").unwrap();
        let refused = MachineSpec::from_description(&description).unwrap_err();
        assert_eq!(refused.id, "negotiate.machine");
        refused.to_string()
    }

    #[test]
    fn what_is_described_is_read_again() {
        let description = spec().describe("guest").unwrap();
        assert_eq!(MachineSpec::from_description(&description).unwrap(), spec());
    }

    #[test]
    fn counts_and_names_that_no_source_of_ours_sends_are_refused() {
        assert!(refusal(|s| s.cpuid.clear()).contains("0 vCPUs"));
        assert!(refusal(|s| s.cpuid = vec![Vec::new(); 17]).contains("17 vCPUs"));
        assert!(refusal(|s| s.disks = vec![s.disks[0].clone(); 16]).contains("18 disks and"));
        assert!(refusal(|s| s.nets = vec![s.nets[0].clone(); 14]).contains("16 disks and"));
        assert!(refusal(|s| s.nets[1].id = "net0".into()).contains("two devices"));
        assert!(refusal(|s| s.nets[1].id = "root".into()).contains("two devices"));
        assert!(refusal(|s| s.nets[0].id = "a\u{1b}".into()).contains("cannot be used"));
        assert!(refusal(|s| s.nets[0].tap = "../eth0".into()).contains("no name"));
        assert!(refusal(|s| s.nets[0].tap = "t%d".into()).contains("no name"));
        assert!(refusal(|s| s.nets[0].queues = 0).contains("queues"));
        assert!(refusal(|s| s.nets[0].queues = 9).contains("queues"));
        assert!(refusal(|s| s.nets[0].mtu = 67).contains("MTU"));
        assert!(refusal(|s| s.nets[0].offloads = 0x10).contains("offloads"));
        assert!(refusal(|s| s.disks[1].id = "root".into()).contains("two disks"));
        assert!(refusal(|s| s.disks[0].id = "a\u{1b}[2J".into()).contains("cannot be used"));
        assert!(refusal(|s| s.disks[0].path = "../x".into()).contains("absolute"));
        assert!(refusal(|s| s.disks[0].path = "/x\u{7}".into()).contains("absolute"));
        assert!(
            refusal(|s| s.cpuid[1] = vec![s.cpuid[0][0]; MAX_LEAVES + 1]).contains("CPUID leaves")
        );
        assert!(refusal(|s| s.cpu.msrs = vec![1; MAX_MSRS + 1]).contains("MSRs"));
        let mut description = spec().describe("guest").unwrap();
        description.ram[1].gpa += migration::PAGE_SIZE;
        assert!(MachineSpec::from_description(&description).is_err());
    }

    /// Every place in a JSON value, changed by `f`.
    fn nodes(value: &mut Value, f: &mut dyn FnMut(&mut Value)) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| nodes(item, f)),
            Value::Object(fields) => fields.values_mut().for_each(|field| nodes(field, f)),
            _ => {}
        }
        f(value);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
            Just(Value::Array(Vec::new())),
            Just(Value::Object(serde_json::Map::new())),
        ]
    }

    proptest! {
        #[test]
        fn a_changed_description_is_refused_or_within_bounds(
            at in 0_usize..60,
            new in any_value(),
        ) {
            let mut description = spec().describe("guest").unwrap();
            let mut value: Value = serde_json::from_str(&description.machine).unwrap();
            let mut n = 0;
            nodes(&mut value, &mut |node| {
                if n == at {
                    *node = new.clone();
                }
                n += 1;
            });
            description.machine = value.to_string();
            if let Ok(read) = MachineSpec::from_description(&description) {
                prop_assert!((1..=MAX_CPUS).contains(&read.cpus()));
                prop_assert!(read.disks.len() + read.nets.len() <= MAX_PLUGGED);
                prop_assert_eq!(memory::layout(read.memory), description.ram);
            }
        }

        #[test]
        fn a_damaged_description_never_panics(
            cut in 0_usize..2000,
            byte in 0_usize..2000,
            with in any::<u8>(),
        ) {
            let mut description = spec().describe("guest").unwrap();
            let mut text = description.machine.into_bytes();
            let len = text.len();
            text[byte % len] = with;
            text.truncate(len - cut % len);
            description.machine = String::from_utf8_lossy(&text).into_owned();
            let _ = MachineSpec::from_description(&description);
        }
    }
}
