//! Which components the state of a machine has, by what is known of the machine before it is built.
//!
//! A kind's name and versions are said here, once. To change a component alone, make a `V2` of its struct,
//! implement [`Component`](crate::snapshot::component::Component) for that in place of [`FirstVersion`] for
//! the `V1`, and take the `V2` where the state is saved and loaded: see docs/state-versioning.md.

use devices::power::{AcpiPowerStateV1, I8042StateV1};
use devices::rtc::RtcStateV1;
use devices::serial::SerialStateV1;
use devices::virtio::block::BlockStateV1;
use devices::virtio::console::ConsoleStateV1;
use devices::virtio::net::NetStateV1;
use devices::virtio::rng::RngStateV1;
use devices::virtio::{MmioStateV1, MmioStateV2};

use crate::build::spec::{MachineSpec, VirtioId};
use crate::clock::ClockStateV1;
use crate::snapshot::agreement::Known;
use crate::snapshot::codec::{self, CodecError};
use crate::snapshot::component::{Component, FirstVersion, Versions};
use crate::state::{IrqchipsStateV1, PitStateV1, RunStateV1};
use crate::vcpu::state::VcpuStateV1;

/// Gives structs that have had no other version the name of their component.
macro_rules! first_versions {
    ($($state:ty: $kind:literal,)*) => {
        $(impl FirstVersion for $state {
            const KIND: &'static str = $kind;
        })*
    };
}

first_versions! {
    RunStateV1: "run",
    ClockStateV1: "clock",
    IrqchipsStateV1: "irqchips",
    PitStateV1: "pit",
    VcpuStateV1: "vcpu",
    SerialStateV1: "serial",
    RtcStateV1: "rtc",
    I8042StateV1: "i8042",
    AcpiPowerStateV1: "acpi",
    BlockStateV1: "virtio-block",
    ConsoleStateV1: "virtio-console",
    RngStateV1: "virtio-rng",
    NetStateV1: "virtio-net",
}

/// Version 2 has the requests that are parked; without any, both say the same.
impl Component for MmioStateV2 {
    const KIND: &'static str = "virtio-mmio";
    const VERSIONS: Versions = Versions {
        oldest: 1,
        newest: 2,
    };

    fn write(&self, version: u32) -> Result<Vec<u8>, CodecError> {
        match version {
            1 => {
                let first = MmioStateV1::try_from(self.clone());
                codec::write(&first.map_err(|parked| CodecError::Unsayable(parked.to_string()))?)
            }
            _ => codec::write(self),
        }
    }

    fn read(version: u32, body: &[u8]) -> Result<Self, CodecError> {
        match version {
            1 => codec::read::<MmioStateV1>(body).map(Self::from),
            _ => codec::read(body),
        }
    }
}

/// The components of such a machine, and the versions of each that this program knows.
pub fn of(spec: &MachineSpec) -> Known {
    let mut known = Known::default();
    known.one::<RunStateV1>();
    known.one::<ClockStateV1>();
    known.one::<IrqchipsStateV1>();
    known.one::<PitStateV1>();
    for index in 0..spec.cpuid.len() {
        known.numbered::<VcpuStateV1>(index);
    }
    known.one::<SerialStateV1>();
    known.one::<RtcStateV1>();
    known.one::<I8042StateV1>();
    known.one::<AcpiPowerStateV1>();
    for (slot, device) in spec.virtio().into_iter().enumerate() {
        known.numbered::<MmioStateV2>(slot);
        match device {
            VirtioId::Block(id) => known.named::<BlockStateV1>(id),
            VirtioId::Console => known.one::<ConsoleStateV1>(),
            VirtioId::Rng => known.one::<RngStateV1>(),
            VirtioId::Net(id) => known.named::<NetStateV1>(id),
        }
    }
    known
}
