//! A saved machine as versions 0.1 wrote and read it: one struct. Frozen as a whole.
//!
//! It is what peers get and send that do not agree on versions of components, so it can hold no component
//! and no version that version 0.1 did not know.

use devices::power::{AcpiPowerStateV1, I8042StateV1};
use devices::rtc::RtcStateV1;
use devices::serial::SerialStateV1;
use devices::virtio::TransportStateV1;
use serde::{Deserialize, Serialize};

use crate::clock::ClockStateV1;
use crate::devices::DevicesState;
use crate::snapshot::codec::CodecError;
use crate::state::{IrqchipsStateV1, MachineState, PitStateV1, RunStateV1};
use crate::vcpu::state::VcpuStateV1;

/// Version in the header of this form.
pub const VERSION: u32 = 1;

/// Kinds of components that it holds, each in its first version.
pub const KINDS: [&str; 14] = [
    "run",
    "clock",
    "irqchips",
    "pit",
    "vcpu",
    "serial",
    "rtc",
    "i8042",
    "acpi",
    "virtio-mmio",
    "virtio-block",
    "virtio-console",
    "virtio-rng",
    "virtio-net",
];

/// Saved machine; frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineStateV1 {
    /// Whether it ran.
    pub run: RunStateV1,
    /// kvmclock and what ties it to real time.
    pub clock: ClockStateV1,
    /// `struct kvm_irqchip` of the master PIC, the slave PIC and the IOAPIC.
    pub irqchips: Vec<Vec<u8>>,
    /// `struct kvm_pit_state2`.
    pub pit: Vec<u8>,
    /// Each vCPU.
    pub vcpus: Vec<VcpuStateV1>,
    /// Devices and their queues.
    pub devices: DevicesStateV1,
}

/// Saved devices; frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DevicesStateV1 {
    /// First serial port.
    pub serial: SerialStateV1,
    /// Real-time clock and CMOS.
    pub rtc: RtcStateV1,
    /// Keyboard controller.
    pub i8042: I8042StateV1,
    /// ACPI power registers.
    pub acpi: AcpiPowerStateV1,
    /// virtio devices by identity, in the order of their slots.
    pub virtio: Vec<(String, TransportStateV1)>,
}

impl From<MachineStateV1> for MachineState {
    fn from(state: MachineStateV1) -> Self {
        let MachineStateV1 {
            run,
            clock,
            irqchips,
            pit,
            vcpus,
            devices,
        } = state;
        let DevicesStateV1 {
            serial,
            rtc,
            i8042,
            acpi,
            virtio,
        } = devices;
        Self {
            run,
            clock,
            irqchips: IrqchipsStateV1(irqchips),
            pit: PitStateV1(pit),
            vcpus,
            devices: DevicesState {
                serial,
                rtc,
                i8042,
                acpi,
                virtio: virtio
                    .into_iter()
                    .map(|(id, state)| (id, state.into()))
                    .collect(),
            },
        }
    }
}

impl TryFrom<MachineState> for MachineStateV1 {
    type Error = CodecError;

    fn try_from(state: MachineState) -> Result<Self, CodecError> {
        let MachineState {
            run,
            clock,
            irqchips: IrqchipsStateV1(irqchips),
            pit: PitStateV1(pit),
            vcpus,
            devices,
        } = state;
        let DevicesState {
            serial,
            rtc,
            i8042,
            acpi,
            virtio,
        } = devices;
        let virtio = virtio.into_iter().map(|(id, state)| {
            let first = TransportStateV1::try_from(state);
            first.map(|state| (id, state))
        });
        Ok(Self {
            run,
            clock,
            irqchips,
            pit,
            vcpus,
            devices: DevicesStateV1 {
                serial,
                rtc,
                i8042,
                acpi,
                virtio: virtio
                    .collect::<Result<_, _>>()
                    .map_err(|parked| CodecError::Unsayable(parked.to_string()))?,
            },
        })
    }
}
