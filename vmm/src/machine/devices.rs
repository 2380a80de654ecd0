//! The devices of a machine and the disks behind them, as one.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use block::Claim;
use devices::power::{AcpiPower, AcpiPowerStateV1, I8042, I8042StateV1};
use devices::rtc::{Rtc, RtcStateV1};
use devices::serial::{Serial, SerialStateV1};
use devices::virtio::{MmioTransport, NetPort, TransportStateV1};
use serde::{Deserialize, Serialize};

use super::MachineError;

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
    pub(super) virtio: Vec<VirtioSlot>,
    pub(super) claims: Vec<(String, Arc<Claim>)>,
    /// The ends that announce the network interfaces.
    pub(super) nets: Vec<(String, NetPort)>,
}

/// How long a source waits for a failed destination to let go of the disks.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(2);
const RECLAIM_PAUSE: Duration = Duration::from_millis(10);
/// How often a new owner looks whether the former one has let go.
const COMPLETE_PAUSE: Duration = Duration::from_millis(50);

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

    /// Presses the ACPI power button.
    pub(super) fn press_power_button(&self) -> Result<(), MachineError> {
        self.acpi.press_power_button().map_err(device("acpi"))
    }

    /// Lets a successor open the disks; this machine keeps its right to write.
    pub(super) fn offer_disks(&self) -> Result<(), MachineError> {
        self.each_claim(Claim::offer_successor)
    }

    /// Takes back what was offered, once the destination has let go of it.
    ///
    /// A destination that hangs may hold on to it. That does not keep this machine from writing: the
    /// claim that was offered is the successor's, never the owner's.
    pub(super) fn reclaim_disks(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + RECLAIM_PATIENCE;
        loop {
            match self.each_claim(Claim::reclaim) {
                Err(_) if Instant::now() < deadline => thread::sleep(RECLAIM_PAUSE),
                result => return result,
            }
        }
    }

    /// Lets go of the disks: they are the destination's now.
    pub(super) fn release_disks(&self) {
        if let Err(e) = self.each_claim(Claim::release) {
            // The kernel drops the locks when this process ends.
            tracing::warn!(error = %e, "a disk's claim could not be released");
        }
    }

    /// Takes the former owner's part of the claims as it lets go, in the background.
    pub(super) fn complete_claims(&self) -> std::io::Result<()> {
        let mut claims: Vec<_> = self
            .claims
            .iter()
            .map(|(id, claim)| (id.clone(), Arc::downgrade(claim)))
            .collect();
        if claims.is_empty() {
            return Ok(());
        }
        thread::Builder::new()
            .name("disk-claims".into())
            .spawn(move || {
                loop {
                    claims.retain(|(id, claim)| match claim.upgrade().map(|c| c.complete()) {
                        Some(Ok(complete)) => !complete,
                        Some(Err(e)) => {
                            tracing::warn!(disk = %id, error = %e, "the claim stays incomplete");
                            false
                        }
                        None => false,
                    });
                    if claims.is_empty() {
                        return;
                    }
                    thread::sleep(COMPLETE_PAUSE);
                }
            })?;
        Ok(())
    }

    /// Acts on every claim, also after one failed; the first failure.
    fn each_claim<T>(&self, act: impl Fn(&Claim) -> block::Result<T>) -> Result<(), MachineError> {
        let mut first = Ok(());
        for (id, claim) in &self.claims {
            let acted = act(claim).map_err(|source| MachineError::Claim {
                id: id.clone(),
                source,
            });
            first = first.and(acted.map(drop));
        }
        first
    }
}
