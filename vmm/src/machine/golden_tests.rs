//! Saved machines of every version that was ever released must still be read, and mean the same.
//!
//! `tests/goldens/machine-v1.bin` is the state of a probe guest with one vCPU and a disk;
//! `machine-v1.json` is what it says, field by field, longer runs of bytes in hexadecimal. With
//! `VMM_WRITE_GOLDEN` set to a folder, the test below writes such a pair there, for a new version;
//! those of the released ones are never written again.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;

use super::probe_tests::{Probe, Setup};
use super::state::{MachineStateV1, RunStateV1, STATE_VERSION};
use super::tests::has_kvm;
use crate::memory::PageBacking;
use crate::snapshot::{bytes, codec};

const NAME: &str = "machine-v1";
/// Longer arrays of bytes are shown in hexadecimal.
const SHORT: usize = 8;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn golden() -> Vec<u8> {
    std::fs::read(goldens().join(NAME).with_extension("bin")).unwrap()
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

fn said(state: &MachineStateV1) -> Value {
    readable(serde_json::to_value(state).unwrap())
}

#[test]
fn version_1_is_read_and_written_as_ever() {
    let blob = golden();
    let state: MachineStateV1 = codec::decode(1, &blob).unwrap();
    let text = std::fs::read_to_string(goldens().join(NAME).with_extension("json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(said(&state), expected);
    assert_eq!(codec::encode(1, &state).unwrap(), blob);
}

#[test]
fn version_1_means_what_it_meant() {
    let state: MachineStateV1 = codec::decode(1, &golden()).unwrap();
    assert_eq!(state.run, RunStateV1::Running);
    assert!(state.clock.kvmclock_ns > 0);
    assert_eq!((state.vcpus.len(), state.irqchips.len()), (1, 3));
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
    let queue = &state.devices.virtio[0].1.queues[0];
    assert!(queue.ready && queue.next_avail > 0 && queue.next_avail == queue.next_used);
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
    let state: MachineStateV1 = codec::decode(STATE_VERSION, &blob).unwrap();
    let path = folder.join(format!("machine-v{STATE_VERSION}"));
    std::fs::write(path.with_extension("bin"), &blob).unwrap();
    let text = serde_json::to_string_pretty(&said(&state)).unwrap();
    std::fs::write(path.with_extension("json"), text + "\n").unwrap();
}

#[test]
fn no_shorter_golden_is_read() {
    let blob = golden();
    for len in 0..blob.len() {
        assert!(codec::decode::<MachineStateV1>(1, &blob[..len]).is_err());
    }
}

proptest! {
    #[test]
    fn a_damaged_golden_never_panics(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..8)
    ) {
        let mut blob = golden();
        for (at, bit) in flips {
            let at = at.index(blob.len());
            blob[at] ^= 1 << bit;
        }
        if let Ok(state) = codec::decode::<MachineStateV1>(1, &blob) {
            // What is read is what was written: nothing was filled in or left out.
            prop_assert_eq!(codec::encode(1, &state).unwrap(), blob);
        }
    }
}
