//! The registers of hardware-reduced ACPI: reset, sleep, and the events of the generic event device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{AcpiPowerStateV1, PowerControl};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// Ports that the registers take: 0 is the reset, sleep control and sleep status register, 4 the event
/// selector; each one byte.
pub const ACPI_POWER_PORTS: u64 = 5;

const CONTROL: u64 = 0;
const EVENTS: u64 = 4;
/// Written to [`CONTROL`]: the reset value that the FADT names.
const RESET: u8 = 1;
/// Written to [`CONTROL`]: sleep type 5 and sleep enable (ACPI 6.5, 4.8.3.7).
const SLEEP_S5: u8 = (5 << 2) | (1 << 5);
const POWER_BUTTON: u8 = 1;

/// Reset, power-off and power button of a hardware-reduced ACPI machine.
pub struct AcpiPower {
    power: Arc<dyn PowerControl>,
    interrupt: Arc<dyn Interrupt>,
    pending: AtomicU8,
}

impl AcpiPower {
    /// Registers that act on `power`; events raise `interrupt`.
    pub fn new(power: Arc<dyn PowerControl>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            power,
            interrupt,
            pending: AtomicU8::new(0),
        }
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the guest cannot be interrupted.
    pub fn press_power_button(&self) -> Result<()> {
        self.pending.fetch_or(POWER_BUTTON, Ordering::SeqCst);
        self.resume()
    }

    /// Events that the guest has not seen.
    pub fn save(&self) -> AcpiPowerStateV1 {
        AcpiPowerStateV1 {
            pending_events: self.pending.load(Ordering::SeqCst),
        }
    }

    /// Takes the place of registers that were saved.
    ///
    /// # Errors
    /// When there are events that this version does not know.
    pub fn load(&self, state: AcpiPowerStateV1) -> Result<()> {
        let AcpiPowerStateV1 { pending_events } = state;
        if pending_events & !POWER_BUTTON != 0 {
            let reason = format!("unknown events {pending_events:#x}");
            return Err(Error::BadState {
                device: "acpi power registers",
                reason,
            });
        }
        self.pending.store(pending_events, Ordering::SeqCst);
        Ok(())
    }

    /// Raises the interrupt again when an event is pending.
    ///
    /// # Errors
    /// When the guest cannot be interrupted.
    pub fn resume(&self) -> Result<()> {
        if self.pending.load(Ordering::SeqCst) != 0 {
            self.interrupt
                .trigger()
                .map_err(|source| Error::Interrupt {
                    device: "acpi power registers",
                    source,
                })?;
        }
        Ok(())
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == EVENTS
            && let [byte] = data
        {
            *byte = self.pending.swap(0, Ordering::SeqCst);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (CONTROL, &[RESET]) => self.power.reset(),
            (CONTROL, &[SLEEP_S5]) => self.power.power_off(),
            // Clearing the wake status, and sleep states that the tables do not offer.
            _ => {}
        }
    }
}

impl std::fmt::Debug for AcpiPower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcpiPower")
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
