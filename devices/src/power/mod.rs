//! Reset, power-off and the power button: the keyboard controller and the ACPI registers.

mod acpi;
mod i8042;
mod state;

pub use acpi::{ACPI_POWER_PORTS, AcpiPower};
pub use i8042::{I8042, I8042_PORTS};
pub use state::{AcpiPowerStateV1, I8042StateV1};

/// What the guest can ask of the machine. Called on a vCPU thread: must not wait for one.
pub trait PowerControl: Send + Sync {
    /// The guest asked for a reset.
    fn reset(&self);
    /// The guest powered itself off.
    fn power_off(&self);
}
