//! Saved state: the codec, a machine in either form, and every device that takes such a state over.

use std::fmt::Debug;

use devices::BusDevice;
use devices::virtio::{TransportStateV1, TransportStateV2};
use machine::boot::refusal::KvmBackend;
use machine::build::spec::{CpuDemands, DiskAccess, DiskSpec, ImageFormat, MachineSpec};
use machine::memory::PageBacking;
use machine::snapshot::codec;
use machine::snapshot::saved::SAVED_VERSION;
use machine::state::components;
use machine::state::v1;
use machine::state::{Form, MachineState};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::legacy::Devices;
use super::virtio::{self, Kind};
use crate::{Memory, Target};

/// A state of a machine, or of one of its devices.
pub(super) const STATE: Target = Target {
    name: "state",
    run,
    seeds,
    words: &[
        "VMMS",
        "disk0",
        "console",
        "rng",
        "vcpu.0",
        "virtio-mmio.0",
        "virtio-block.disk0",
    ],
    longest: 12 << 10,
    memory: Memory {
        base: 8 << 20,
        per_byte: 256,
    },
};

fn run(bytes: &[u8]) {
    let Some((&which, rest)) = bytes.split_first() else {
        return;
    };
    match which % 10 {
        0 => load_machine(v1::VERSION, rest),
        1 => load_transport(Kind::Block, rest),
        2 => load_transport(Kind::Console, rest),
        3 => load_transport(Kind::Rng, rest),
        4 => load(
            rest,
            |state, devices| devices.serial.load(state).is_ok(),
            |d| d.serial.save(),
        ),
        5 => load(
            rest,
            |state, devices| devices.rtc.load(state).is_ok(),
            |d| d.rtc.save(),
        ),
        6 => load(
            rest,
            |state, devices| devices.i8042.load(state).is_ok(),
            |d| d.i8042.save(),
        ),
        8 => load_transport(Kind::Net, rest),
        9 => load_machine(SAVED_VERSION, rest),
        _ => load(
            rest,
            |state, devices| devices.acpi.load(state).is_ok(),
            |d| d.acpi.save(),
        ),
    }
}

/// Reads a state; what is read is what is written again, byte by byte.
fn read<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    let state: T = codec::read(body).ok()?;
    let again = codec::write(&state).expect("what was read can be written");
    assert_eq!(again, body);
    Some(state)
}

/// The machine that the golden states are of, as far as its components go by it.
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

/// Reads a machine in the form of this version; written and read again it is the same.
fn load_machine(version: u32, body: &[u8]) {
    let blob = [b"VMMS", &version.to_le_bytes()[..], body].concat();
    let spec = spec();
    let Ok(state) = MachineState::decode(&blob, &spec) else {
        return;
    };
    let form = match version {
        v1::VERSION => Form::One,
        _ => Form::Components(components::of(&spec).newest()),
    };
    let again = state.clone().encode(&form);
    let again = again.expect("what was read can be written");
    // A list may have come in another order, and of older versions of its components.
    assert!(again.len() >= blob.len());
    assert!(version != v1::VERSION || again == blob);
    let again = MachineState::decode(&again, &spec).expect("what was written can be read");
    assert_eq!(again, state);
}

fn load_transport(kind: Kind, body: &[u8]) {
    // With parked requests, or without.
    let state = read::<(TransportStateV1, Vec<Vec<u16>>)>(body)
        .map(|(first, parked)| TransportStateV2 { first, parked })
        .or_else(|| read::<TransportStateV1>(body).map(Into::into));
    let Some(state) = state else {
        return;
    };
    let (_file, ram) = virtio::memory();
    let transport = virtio::transport(kind, &ram);
    let _ = transport.pause();
    let before = transport.save().expect("a paused device is saved");
    if transport.load(state).is_err() {
        let after = transport.save().expect("a paused device is saved");
        assert_eq!(
            after, before,
            "a state that was refused left something behind"
        );
        return;
    }
    let _ = transport.resume();
    for offset in (0..0x120).step_by(4) {
        transport.read(offset, &mut [0; 4]);
    }
    for queue in 0..5 {
        transport.serve_now(queue);
    }
    let _ = transport.pause();
    let saved = transport.save().expect("a paused device is saved");
    let next = virtio::transport(kind, &ram);
    let _ = next.pause();
    let loaded = next.load(saved.clone());
    assert!(loaded.is_ok(), "{loaded:?} of what was saved: {saved:?}");
}

fn load<S: Serialize + DeserializeOwned + Clone + PartialEq + Debug>(
    body: &[u8],
    load: impl Fn(S, &Devices) -> bool,
    save: impl Fn(&Devices) -> S,
) {
    let Some(state) = read::<S>(body) else {
        return;
    };
    let devices = Devices::new();
    if !load(state, &devices) {
        return;
    }
    let _ = (
        devices.serial.resume(),
        devices.rtc.resume(),
        devices.acpi.resume(),
    );
    for which in 0..4 {
        for offset in 0..8 {
            devices.port(which).read(offset, &mut [0]);
            devices.port(which).write(offset, &[0x5a]);
        }
    }
    let saved = save(&devices);
    assert!(load(saved.clone(), &Devices::new()), "{saved:?}");
}

fn seeds() -> Vec<Vec<u8>> {
    fn seed<T: Serialize>(which: u8, state: &T) -> Vec<u8> {
        [&[which][..], &codec::write(state).unwrap_or_default()].concat()
    }
    let devices = Devices::new();
    let mut seeds = vec![
        seed(4, &devices.serial.save()),
        seed(5, &devices.rtc.save()),
        seed(6, &devices.i8042.save()),
        seed(7, &devices.acpi.save()),
    ];
    for (which, kind) in [
        (1, Kind::Block),
        (2, Kind::Console),
        (3, Kind::Rng),
        (8, Kind::Net),
    ] {
        let (_file, ram) = virtio::memory();
        let transport = virtio::transport(kind, &ram);
        let _ = transport.pause();
        if let Ok(state) = transport.save() {
            seeds.push(seed(which, &state));
        }
    }
    let one = include_bytes!("../../../machine/tests/goldens/machine-v1.bin");
    let components = include_bytes!("../../../machine/tests/goldens/machine-v2.bin");
    seeds.push([&[0], &one[8..]].concat());
    seeds.push([&[9], &components[8..]].concat());
    seeds
}
