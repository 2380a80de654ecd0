//! The devices of a machine and the disks behind them, as one.

pub(crate) mod announce;
pub(crate) mod console_ports;
pub mod net;
mod tracking;

use std::sync::Arc;
use std::time::Duration;

use block::Stack;
use devices::power::{AcpiPower, AcpiPowerStateV1, I8042, I8042StateV1};
use devices::rtc::{Rtc, RtcStateV1};
use devices::serial::{Serial, SerialStateV1};
use devices::virtio::{
    ConsoleEnd, DeviceStateV1, Handover, MmioTransport, NetPort, PAUSE_PATIENCE, TransportStateV2,
    drain_within, flush_within, pause_within,
};
use serde::Serialize;

use crate::build::spec::{MachineSpec, VirtioId};
use crate::disks::claims::Claims;
use crate::disks::{Disk, Disks, pivots};
use crate::error::MachineError;
use crate::snapshot::saved::{Saved, SavedError, Saving};

/// Saved devices: of each component the newest version that this program knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicesState {
    /// First serial port.
    pub serial: SerialStateV1,
    /// Real-time clock and CMOS.
    pub rtc: RtcStateV1,
    /// Keyboard controller.
    pub i8042: I8042StateV1,
    /// ACPI power registers.
    pub acpi: AcpiPowerStateV1,
    /// virtio devices by identity, in the order of their slots.
    pub virtio: Vec<(String, TransportStateV2)>,
}

impl DevicesState {
    pub(crate) fn put(self, to: &mut Saving<'_>) -> Result<(), SavedError> {
        let Self {
            serial,
            rtc,
            i8042,
            acpi,
            virtio,
        } = self;
        to.one(&serial)?;
        to.one(&rtc)?;
        to.one(&i8042)?;
        to.one(&acpi)?;
        for (slot, (id, state)) in virtio.into_iter().enumerate() {
            let (transport, device) = state.split();
            to.numbered(slot, &transport)?;
            match &device {
                DeviceStateV1::Block(state) => to.named(&id, state)?,
                DeviceStateV1::Console(state) => to.one(state)?,
                DeviceStateV1::Rng(state) => to.one(state)?,
                DeviceStateV1::Net(state) => to.named(&id, state)?,
            }
        }
        Ok(())
    }

    pub(crate) fn take(from: &mut Saved, spec: &MachineSpec) -> Result<Self, SavedError> {
        let mut virtio = Vec::new();
        for (slot, device) in spec.virtio().into_iter().enumerate() {
            let transport = from.numbered(slot)?;
            let state = match device {
                VirtioId::Block(id) => DeviceStateV1::Block(from.named(id)?),
                VirtioId::Console => DeviceStateV1::Console(from.one()?),
                VirtioId::Rng => DeviceStateV1::Rng(from.one()?),
                VirtioId::Net(id) => DeviceStateV1::Net(from.named(id)?),
            };
            let state = TransportStateV2::join(transport, state);
            virtio.push((device.name().to_owned(), state));
        }
        Ok(Self {
            serial: from.one()?,
            rtc: from.one()?,
            i8042: from.one()?,
            acpi: from.one()?,
            virtio,
        })
    }
}

/// A virtio device in its slot.
pub(crate) struct VirtioSlot {
    pub(crate) id: String,
    pub(crate) transport: Arc<MmioTransport>,
}

/// All devices of a machine.
pub(crate) struct Devices {
    pub(crate) serial: Arc<Serial>,
    pub(crate) rtc: Arc<Rtc>,
    pub(crate) i8042: Arc<I8042>,
    pub(crate) acpi: Arc<AcpiPower>,
    /// User's end of the virtio console.
    pub(crate) console: ConsoleEnd,
    pub(crate) virtio: Vec<VirtioSlot>,
    pub(crate) claims: Claims,
    pub(crate) disks: Disks,
    /// The ends that announce the network interfaces.
    pub(crate) nets: Vec<(String, NetPort)>,
}

fn device(id: &str) -> impl FnOnce(devices::Error) -> MachineError {
    let id = id.to_owned();
    move |source| MachineError::Device { id, source }
}

impl Devices {
    /// Drains the devices and flushes the disks, in the time that one device has; all are stopped even if
    /// one fails.
    pub(crate) fn pause(&self) -> Result<(), MachineError> {
        self.each(pause_within)
    }

    /// Drains the devices in the time that one has, and flushes nothing; all are stopped even if one fails.
    pub(crate) fn drain(&self) -> Result<(), MachineError> {
        self.each(drain_within)
    }

    /// Does the same to all devices, in the time that one has to stand still; the first failure is told.
    fn each(
        &self,
        act: impl FnOnce(&[&MmioTransport], Duration) -> Vec<devices::Result<()>>,
    ) -> Result<(), MachineError> {
        let transports: Vec<_> = self.virtio.iter().map(|slot| &*slot.transport).collect();
        let acted = act(&transports, PAUSE_PATIENCE);
        let mut named = self.virtio.iter().zip(acted);
        named.try_for_each(|(slot, acted)| acted.map_err(device(&slot.id)))
    }

    /// Has disk `id` be `next` from here on, as soon as `handover` has brought there what is left; how long requests
    /// waited. Its changes are not tracked any more.
    ///
    /// # Errors
    /// As for [`Devices::pivot`], and those of `handover`: nothing is changed then.
    pub(crate) fn hand_over_disk<H>(
        &self,
        next: &Arc<Disk>,
        handover: &mut H,
    ) -> Result<Duration, H::Error>
    where
        H: Handover,
        H::Error: From<MachineError>,
    {
        let id = &next.id;
        let slot = self.virtio.iter().find(|slot| slot.id == *id);
        let slot = slot.ok_or_else(|| MachineError::Mismatch(format!("there is no disk {id}")))?;
        let mut tracked = self.disks.tracked().lock();
        let backend = next.backend()?;
        let stood = slot
            .transport
            .hand_over(backend, pivots::PATIENCE, handover)?;
        tracked.remove(id);
        self.claims.replace(id, Arc::clone(&next.claim));
        self.disks.replace(next);
        Ok(stood)
    }

    /// Flushes the disks of the running machine, so that less is left to flush when it is stopped.
    pub(crate) fn flush(&self) -> Result<(), MachineError> {
        for VirtioSlot { id, transport } in &self.virtio {
            transport.flush().map_err(device(id))?;
        }
        Ok(())
    }

    /// Whether a flush may have anything to do.
    pub(crate) fn has_unflushed_writes(&self) -> bool {
        let mut transports = self.virtio.iter().map(|slot| &slot.transport);
        transports.any(|transport| transport.has_unflushed_writes())
    }

    /// Flushes the disks of the stopped machine, in the time that a device has to stand still.
    pub(crate) fn flush_stopped(&self) -> Result<(), MachineError> {
        self.each(flush_within)
    }

    /// Lets the devices go on; interrupts that may have been lost are raised again.
    pub(crate) fn resume(&self) -> Result<(), MachineError> {
        for VirtioSlot { id, transport } in &self.virtio {
            transport.resume().map_err(device(id))?;
        }
        self.serial.resume().map_err(device("serial"))?;
        self.rtc.resume().map_err(device("rtc"))?;
        self.acpi.resume().map_err(device("acpi"))
    }

    /// Has the requests of disk `id` go to another stack, see [`MmioTransport::pivot`].
    pub(crate) fn pivot(
        &self,
        id: &str,
        next: Stack,
        patience: Duration,
    ) -> Result<Duration, MachineError> {
        let disk = self.disks.find(id);
        let slot = self.virtio.iter().find(|slot| slot.id == id);
        let (disk, slot) = disk
            .zip(slot)
            .ok_or_else(|| MachineError::NoDisk { id: id.to_owned() })?;
        disk.current.pivot(id, &slot.transport, next, patience)
    }

    pub(crate) fn save(&self) -> Result<DevicesState, MachineError> {
        let Self {
            serial,
            rtc,
            i8042,
            acpi,
            console: _,
            virtio,
            claims: _,
            disks: _,
            nets: _,
        } = self;
        let mut saved = Vec::with_capacity(virtio.len());
        for VirtioSlot { id, transport } in virtio {
            saved.push((id.clone(), transport.save().map_err(device(id))?));
        }
        Ok(DevicesState {
            serial: serial.save(),
            rtc: rtc.save(),
            i8042: i8042.save(),
            acpi: acpi.save(),
            virtio: saved,
        })
    }

    pub(crate) fn load(&self, state: DevicesState) -> Result<(), MachineError> {
        let DevicesState {
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
    pub(crate) fn drain_output(&self, timeout: Duration) -> bool {
        // Both, even if one does not come to its end.
        self.serial.drain_output(timeout) & self.console.drain_output(timeout)
    }

    /// Presses the ACPI power button.
    pub(crate) fn press_power_button(&self) -> Result<(), MachineError> {
        self.acpi.press_power_button().map_err(device("acpi"))
    }
}
