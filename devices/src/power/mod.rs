//! Reset, power-off and the power button: the keyboard controller, the reset control register and the ACPI
//! registers.

mod acpi;
mod control;
mod i8042;
mod reset_control;
mod state;

pub use acpi::{ACPI_POWER_PORTS, AcpiPower};
pub use control::PowerControl;
pub use i8042::{I8042, I8042_PORTS};
pub use reset_control::{RESET_CONTROL_PORT, ResetControl};
pub use state::{AcpiPowerStateV1, I8042StateV1};
