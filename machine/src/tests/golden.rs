//! Saved machines of every version that was ever released must still be read, and mean the same.
//!
//! `tests/goldens/machine-v1.bin` is the state of a probe guest with one vCPU and a disk;
//! `machine-v1.json` is what it says, field by field, longer runs of bytes in hexadecimal. `machine-v2` is the
//! same as a list of components. With `VMM_WRITE_GOLDEN` set to a folder, the test below writes such a pair
//! there, for a new version; those of the released ones are never written again.
//!
//! Goldens of single components are in `component_tests.rs`.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::boot::refusal::KvmBackend;
use crate::build::spec::{CpuDemands, DiskAccess, DiskSpec, ImageFormat, MachineSpec};
use crate::memory::PageBacking;
use crate::snapshot::saved::SAVED_VERSION;
use crate::snapshot::{bytes, codec};
use crate::state::components;
use crate::state::v1::{self, MachineStateV1};
use crate::state::{Form, MachineState, RunStateV1};
use crate::tests::has_kvm;
use crate::tests::probe::{Probe, Setup};

/// Longer arrays of bytes are shown in hexadecimal.
const SHORT: usize = 8;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(goldens().join(name).with_extension("bin")).unwrap()
}

/// What the golden of this name says, field by field.
fn told(name: &str) -> Value {
    let text = std::fs::read_to_string(goldens().join(name).with_extension("json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The machine that the goldens are of, as far as its components go by it.
fn spec() -> MachineSpec {
    MachineSpec {
        memory: 16 << 20,
        pages: PageBacking::Small,
        cpuid: vec![Vec::new()],
        cpu: CpuDemands::default(),
        backend: KvmBackend::Unknown,
        disks: vec![DiskSpec {
            format: ImageFormat::Raw,
            id: "disk0".into(),
            path: "/srv/disk0.raw".into(),
            access: DiskAccess::ReadWrite,
            size: 1 << 20,
        }],
        nets: Vec::new(),
    }
}

fn newest() -> Form {
    Form::Components(components::of(&spec()).newest())
}

/// Every component in its first version, as in the golden lists.
fn first() -> Form {
    let known = components::of(&spec()).in_first_version(&v1::KINDS);
    Form::Components(known.newest())
}

fn readable(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let bytes: Option<Vec<u8>> = items
                .iter()
                .map(|item| item.as_u64().and_then(|n| u8::try_from(n).ok()))
                .collect();
            match bytes {
                Some(bytes) if bytes.len() > SHORT => {
                    Value::from(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
                }
                _ => Value::Array(items.into_iter().map(readable).collect()),
            }
        }
        Value::Object(fields) => fields.into_iter().map(|(k, v)| (k, readable(v))).collect(),
        other => other,
    }
}

fn said(state: &impl Serialize) -> Value {
    readable(serde_json::to_value(state).unwrap())
}

#[test]
fn version_1_is_read_and_written_as_ever() {
    let blob = golden("machine-v1");
    let state: MachineStateV1 = codec::decode(1, &blob).unwrap();
    assert_eq!(said(&state), told("machine-v1"));
    assert_eq!(codec::encode(1, &state).unwrap(), blob);
    let read = MachineState::decode(&blob, &spec()).unwrap();
    assert_eq!(read.encode(&Form::One).unwrap(), blob);
}

#[test]
fn version_2_is_read_and_written_as_ever() {
    let blob = golden("machine-v2");
    let state = MachineState::decode(&blob, &spec()).unwrap();
    assert_eq!(said(&state), told("machine-v2"));
    assert_eq!(state.encode(&first()).unwrap(), blob);
}

#[test]
fn a_machine_is_the_same_in_either_form() {
    for name in ["machine-v1", "machine-v2"] {
        let state = MachineState::decode(&golden(name), &spec()).unwrap();
        for form in [Form::One, first(), newest()] {
            let blob = state.clone().encode(&form).unwrap();
            let again = MachineState::decode(&blob, &spec()).unwrap();
            assert_eq!(again, state, "{name} as {form:?}");
        }
    }
}

#[test]
fn a_machine_with_parked_requests_is_written_in_no_form_that_would_lose_them() {
    let mut state = MachineState::decode(&golden("machine-v2"), &spec()).unwrap();
    state.devices.virtio[0].1.parked = vec![vec![7, 3]];
    let blob = state.clone().encode(&newest()).unwrap();
    let again = MachineState::decode(&blob, &spec()).unwrap();
    assert_eq!(again, state);
    for form in [Form::One, first()] {
        let refused = state.clone().encode(&form).unwrap_err();
        let chain = format!("{refused} {:?}", std::error::Error::source(&refused));
        assert!(chain.contains("2 disk requests"), "{chain}");
    }
}

#[test]
fn golden_machines_mean_what_they_meant() {
    for name in ["machine-v1", "machine-v2"] {
        let state = MachineState::decode(&golden(name), &spec()).unwrap();
        assert_eq!(state.run, RunStateV1::Running);
        assert!(state.clock.kvmclock_ns > 0);
        assert_eq!((state.vcpus.len(), state.irqchips.0.len()), (1, 3));
        let vcpu = &state.vcpus[0];
        let regs: kvm_bindings::kvm_regs = bytes::to("regs", &vcpu.regs).unwrap();
        assert!(regs.rip >= 0x10_0000, "the probe runs where it was loaded");
        assert_eq!((vcpu.xsave.len(), vcpu.lapic.len()), (4096, 1024));
        let mut msrs: Vec<u32> = vcpu.msrs.iter().map(|(index, _)| *index).collect();
        msrs.sort_unstable();
        msrs.dedup();
        assert_eq!(msrs.len(), vcpu.msrs.len(), "each MSR once");
        let ids: Vec<&str> = state
            .devices
            .virtio
            .iter()
            .map(|(id, _)| id.as_str())
            .collect();
        assert_eq!(ids, ["disk0", "console", "rng"]);
        let queue = &state.devices.virtio[0].1.first.queues[0];
        assert!(queue.ready && queue.next_avail > 0 && queue.next_avail == queue.next_used);
    }
}

#[test]
fn a_golden_state_is_written_where_it_is_asked_for() {
    let Some(folder) = std::env::var_os("VMM_WRITE_GOLDEN").map(PathBuf::from) else {
        return;
    };
    if !has_kvm() {
        return;
    }
    let probe = Probe::start(&Setup {
        cpus: 1,
        memory: 16 << 20,
        pages: PageBacking::Small,
        disk: Some(1 << 20),
        cmdline: "dirty_set=1M tick_ms=20 block=verify,size=1M block_rate=500 rng=read",
    });
    probe.wait(|line| matches!(line, crate::probe::ProbeLine::Tick(t) if t.blocks_verified > 0));
    let blob = probe.save();
    let state = MachineState::decode(&blob, &spec()).unwrap();
    let path = folder.join(format!("machine-v{SAVED_VERSION}"));
    std::fs::write(path.with_extension("bin"), &blob).unwrap();
    let text = serde_json::to_string_pretty(&said(&state)).unwrap();
    std::fs::write(path.with_extension("json"), text + "\n").unwrap();
}

#[test]
fn no_shorter_golden_is_read() {
    for (name, step) in [("machine-v1", 1), ("machine-v2", 13)] {
        let blob = golden(name);
        for len in (0..blob.len()).step_by(step).chain([blob.len() - 1]) {
            assert!(
                MachineState::decode(&blob[..len], &spec()).is_err(),
                "{name}"
            );
        }
    }
}

#[test]
fn the_state_of_another_machine_is_refused_by_the_name_of_what_differs() {
    let mut more = spec();
    more.cpuid.push(Vec::new());
    more.disks[0].id = "data".into();
    let blob = golden("machine-v2");
    let refused = MachineState::decode(&blob, &more).unwrap_err().to_string();
    assert!(refused.contains("lacks vcpu.1"), "{refused}");
    let mut fewer = spec();
    fewer.disks.clear();
    let refused = MachineState::decode(&blob, &fewer).unwrap_err().to_string();
    assert!(refused.contains("virtio-block.disk0"), "{refused}");
}

proptest! {
    #[test]
    fn a_damaged_golden_never_panics(
        name in prop::sample::select(vec!["machine-v1", "machine-v2"]),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..8)
    ) {
        let mut blob = golden(name);
        for (at, bit) in flips {
            let at = at.index(blob.len());
            blob[at] ^= 1 << bit;
        }
        if let Ok(state) = MachineState::decode(&blob, &spec()) {
            // What is read is what was written: nothing was filled in or left out.
            let form = if name == "machine-v1" { Form::One } else { first() };
            prop_assert_eq!(state.encode(&form).unwrap(), blob);
        }
    }
}
