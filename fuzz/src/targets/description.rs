//! The description of a machine that a source sends in the negotiation, and what it tells of its disks.

use devices::virtio::net::Mac;
use machine::boot::refusal::KvmBackend;
use machine::build::spec::{
    CpuDemands, DiskAccess, DiskSpec, ImageFormat, MAX_CPUS, MAX_PLUGGED, MachineSpec,
};
use machine::cpuid::CpuidLeaf;
use machine::devices::net::NetSpec;
use machine::memory::{self, PageBacking};
use migration::vm::MachineDescription;

use crate::{Memory, Target};

/// The machine as its VMM describes it to itself.
pub(super) const DESCRIPTION: Target = Target {
    name: "description",
    run,
    seeds,
    words: &[
        "\"cpuid\"",
        "\"disks\"",
        "\"memory\"",
        "\"pages\"",
        "\"backend\"",
        "[[{",
        "}]]",
        "null",
        "-1",
        "1e30",
        "\"id\":",
    ],
    longest: 4096,
    memory: Memory {
        base: 1 << 20,
        per_byte: 128,
    },
};

/// Where disks lie, and samples of what they hold.
const DISKS: [&str; 2] = [
    r#"{"host":"a","holds":"00","disks":[{"id":"data","device":1,"inode":2,"below":[3,4],"is_local":true}]}"#,
    r#"{"key":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"disks":[{"id":"data","blocks":[[4096,[1,2,3,4,5,6,7,8]]]}]}"#,
];

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    machine::fuzzing::told_of_disks(&text);
    // The layout follows from the size; a peer that sends another is refused.
    let size = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|value| value.get("memory")?.as_u64())
        .unwrap_or(16 << 20);
    let description = MachineDescription {
        name: "guest".into(),
        ram: memory::layout(size),
        machine: text,
        disks: None,
    };
    let Ok(spec) = MachineSpec::from_description(&description) else {
        return;
    };
    assert!(
        (1..=MAX_CPUS).contains(&spec.cpus()) && spec.disks.len() + spec.nets.len() <= MAX_PLUGGED
    );
    let again = spec
        .describe("guest")
        .expect("what was read can be written");
    let again = MachineSpec::from_description(&again).expect("what was written can be read");
    assert_eq!(again, spec);
}

fn seeds() -> Vec<Vec<u8>> {
    let leaf = CpuidLeaf {
        function: 1,
        index: 0,
        flags: 0,
        eax: 0x1f,
        ebx: 1,
        ecx: 2,
        edx: u32::MAX,
    };
    let disk = |id: &str, access| DiskSpec {
        format: match access {
            DiskAccess::ReadWrite => ImageFormat::Raw,
            DiskAccess::ReadOnly => ImageFormat::Qcow2,
        },
        id: id.into(),
        path: format!("/srv/{id}.raw"),
        access,
        size: 1 << 30,
    };
    let net = NetSpec {
        id: "net0".into(),
        tap: "tap0".into(),
        mac: Mac::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        queues: 2,
        mtu: 1500,
        offloads: 0x0f,
    };
    let spec = |cpus, disks, nets| MachineSpec {
        memory: 5 << 30,
        pages: PageBacking::Small,
        cpuid: vec![vec![leaf]; cpus],
        cpu: CpuDemands {
            model: "x86-64-v2".into(),
            tsc_khz: 2_600_000,
            xsave_bytes: 4096,
            msrs: vec![0x174, 0x6e0],
            feature_msrs: vec![(0x10a, 1)],
        },
        backend: KvmBackend::Amd,
        disks,
        nets,
    };
    let disks = vec![
        disk("root", DiskAccess::ReadWrite),
        disk("data", DiskAccess::ReadOnly),
    ];
    [spec(1, Vec::new(), Vec::new()), spec(2, disks, vec![net])]
        .iter()
        .filter_map(|spec| serde_json::to_vec(spec).ok())
        .chain(DISKS.map(|text| text.as_bytes().to_vec()))
        .collect()
}
