//! A saved machine, and those of its components that are not a device's, a vCPU's or the clock.

use serde::{Deserialize, Serialize};

use crate::clock::ClockStateV1;
use crate::devices::DevicesState;
use crate::vcpu::state::VcpuStateV1;

/// Whether the guest ran when its state was saved, its own user's pause aside; frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStateV1 {
    /// It goes on where it is loaded.
    Running,
    /// Its user had paused it: it stays paused.
    Paused,
}

/// Saved interrupt controllers: `struct kvm_irqchip` of the master PIC, the slave PIC and the IOAPIC; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqchipsStateV1(pub Vec<Vec<u8>>);

/// Saved PIT: `struct kvm_pit_state2`; frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitStateV1(pub Vec<u8>);

/// A saved machine: of each component the newest version that this program knows. It does not travel as it
/// is, but in one of the [`Form`](super::Form)s.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineState {
    /// Whether it ran.
    pub run: RunStateV1,
    /// kvmclock and what ties it to real time.
    pub clock: ClockStateV1,
    /// Interrupt controllers.
    pub irqchips: IrqchipsStateV1,
    /// Timer.
    pub pit: PitStateV1,
    /// Each vCPU.
    pub vcpus: Vec<VcpuStateV1>,
    /// Devices and their queues.
    pub devices: DevicesState,
}
