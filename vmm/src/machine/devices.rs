//! The devices of a machine and the disks behind them, as one.

use std::sync::Arc;
use std::time::Duration;

use devices::power::{AcpiPower, AcpiPowerStateV1, I8042, I8042StateV1};
use devices::rtc::{Rtc, RtcStateV1};
use devices::serial::{Serial, SerialStateV1};
use devices::virtio::{ConsoleEnd, MmioTransport, NetPort, TransportStateV1};
use serde::{Deserialize, Serialize};

use super::MachineError;
use super::claims::Claims;

/// Saved devices; frozen: a change makes a `V2` with a conversion.
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

/// A virtio device in its slot.
pub(super) struct VirtioSlot {
    pub(super) id: String,
    pub(super) transport: Arc<MmioTransport>,
}

/// All devices of a machine.
pub(crate) struct Devices {
    pub(super) serial: Arc<Serial>,
    pub(super) rtc: Arc<Rtc>,
    pub(super) i8042: Arc<I8042>,
    pub(super) acpi: Arc<AcpiPower>,
    /// User's end of the virtio console.
    pub(super) console: ConsoleEnd,
    pub(super) virtio: Vec<VirtioSlot>,
    pub(super) claims: Claims,
    /// The ends that announce the network interfaces.
    pub(super) nets: Vec<(String, NetPort)>,
}

fn device(id: &str) -> impl FnOnce(devices::Error) -> MachineError {
    let id = id.to_owned();
    move |source| MachineError::Device { id, source }
}

impl Devices {
    /// Drains the devices and flushes the disks; all are stopped even if one fails.
    pub(super) fn pause(&self) -> Result<(), MachineError> {
        let mut first = Ok(());
        for VirtioSlot { id, transport } in &self.virtio {
            let paused = transport.pause().map_err(device(id));
            if first.is_ok() {
                first = paused;
            }
        }
        first
    }

    /// Flushes the disks of the running machine, so that less is left to flush when it is paused.
    pub(super) fn flush(&self) -> Result<(), MachineError> {
        for VirtioSlot { id, transport } in &self.virtio {
            transport.flush().map_err(device(id))?;
        }
        Ok(())
    }

    /// Lets the devices go on; interrupts that may have been lost are raised again.
    pub(super) fn resume(&self) -> Result<(), MachineError> {
        for VirtioSlot { id, transport } in &self.virtio {
            transport.resume().map_err(device(id))?;
        }
        self.serial.resume().map_err(device("serial"))?;
        self.rtc.resume().map_err(device("rtc"))?;
        self.acpi.resume().map_err(device("acpi"))
    }

    pub(super) fn save(&self) -> Result<DevicesStateV1, MachineError> {
        let Self {
            serial,
            rtc,
            i8042,
            acpi,
            console: _,
            virtio,
            claims: _,
            nets: _,
        } = self;
        let mut saved = Vec::with_capacity(virtio.len());
        for VirtioSlot { id, transport } in virtio {
            saved.push((id.clone(), transport.save().map_err(device(id))?));
        }
        Ok(DevicesStateV1 {
            serial: serial.save(),
            rtc: rtc.save(),
            i8042: i8042.save(),
            acpi: acpi.save(),
            virtio: saved,
        })
    }

    pub(super) fn load(&self, state: DevicesStateV1) -> Result<(), MachineError> {
        let DevicesStateV1 {
            serial,
            rtc,
            i8042,
            acpi,
            virtio,
        } = state;
        if virtio.len() != self.virtio.len() {
            let (saved, here) = (virtio.len(), self.virtio.len());
            return Err(MachineError::Mismatch(format!(
                "it has {saved} virtio devices, not {here}"
            )));
        }
        self.serial.load(serial).map_err(device("serial"))?;
        self.rtc.load(rtc).map_err(device("rtc"))?;
        self.i8042.load(i8042).map_err(device("i8042"))?;
        self.acpi.load(acpi).map_err(device("acpi"))?;
        for (slot, (id, state)) in self.virtio.iter().zip(virtio) {
            if slot.id != id {
                let here = &slot.id;
                return Err(MachineError::Mismatch(format!(
                    "it has device {id} in place of {here}"
                )));
            }
            slot.transport.load(state).map_err(device(&id))?;
        }
        Ok(())
    }

    /// Waits until what the guest printed is with the console, at most for `timeout` each; whether it is.
    pub(super) fn drain_output(&self, timeout: Duration) -> bool {
        // Both, even if one does not come to its end.
        self.serial.drain_output(timeout) & self.console.drain_output(timeout)
    }

    /// Presses the ACPI power button.
    pub(super) fn press_power_button(&self) -> Result<(), MachineError> {
        self.acpi.press_power_button().map_err(device("acpi"))
    }
}
