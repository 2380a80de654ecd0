//! State of a whole machine: save and load.
//!
//! # Order
//! *Save*: the vCPUs are parked first and the devices drained next, so nothing moves any more; the
//! clock is read before the vCPUs so that it lies nearest to the moment they stopped.
//!
//! *Load*: the clock first, because the TSC offsets are worked out against it; interrupt controllers
//! before the vCPUs, whose LAPICs the IOAPIC may address; devices last, since waking their queues may
//! raise interrupts.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};

use crate::clock::{self, Passed, TimeBounds};
use crate::error::MachineError;
use crate::kvm::os_error;
use crate::machine::Machine;
use crate::snapshot::bytes;
use crate::state::components;
use crate::state::form::Form;
use crate::state::parts::{IrqchipsStateV1, MachineState, PitStateV1, RunStateV1};
use crate::vcpu::state as vcpu_state;

const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

impl Machine {
    /// Saves the paused machine, each component in its newest version.
    ///
    /// # Errors
    /// When KVM or a device refuses.
    pub fn save(&self, run: RunStateV1) -> Result<Vec<u8>, MachineError> {
        self.save_as(run, &Form::Components(components::of(self.spec()).newest()))
    }

    /// Saves the paused machine in this form.
    ///
    /// # Errors
    /// When KVM or a device refuses, or a component has no version in this form.
    pub fn save_as(&self, run: RunStateV1, form: &Form) -> Result<Vec<u8>, MachineError> {
        self.state(run)?.encode(form)
    }

    fn state(&self, run: RunStateV1) -> Result<MachineState, MachineError> {
        let clock = clock::save(&self.vm, self.tsc)
            .map_err(|e| MachineError::State("read the clock", e))?;
        let mut irqchips = Vec::with_capacity(IRQCHIPS.len());
        for chip_id in IRQCHIPS {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.vm
                .get_irqchip(&mut chip)
                .map_err(|e| MachineError::State("read the interrupt controllers", os_error(e)))?;
            irqchips.push(bytes::of(&chip));
        }
        let pit = self
            .vm
            .get_pit2()
            .map_err(|e| MachineError::State("read the PIT", os_error(e)))?;
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for index in 0..self.vcpus.len() {
            let state = vcpu_state::save(&self.vcpus.fd(index), &self.vcpu_caps)
                .map_err(|e| MachineError::Vcpu(index as u32, e))?;
            vcpus.push(state);
        }
        Ok(MachineState {
            run,
            clock,
            irqchips: IrqchipsStateV1(irqchips),
            pit: PitStateV1(bytes::of(&pit)),
            vcpus,
            devices: self.devices.save()?,
        })
    }

    /// Loads a saved state into this machine, which never ran; says whether the guest ran.
    ///
    /// # Errors
    /// When the state is damaged, of another version or machine, or KVM or a device refuses it.
    pub fn load(&self, blob: &[u8]) -> Result<RunStateV1, MachineError> {
        self.load_saved(blob, TimeBounds::default())
    }

    /// As [`Machine::load`], of a state of which this host can tell when it was saved.
    ///
    /// # Errors
    /// As [`Machine::load`].
    pub fn load_saved(&self, blob: &[u8], bounds: TimeBounds) -> Result<RunStateV1, MachineError> {
        let MachineState {
            run,
            clock: then,
            irqchips: IrqchipsStateV1(irqchips),
            pit: PitStateV1(pit),
            vcpus,
            devices,
        } = MachineState::decode(blob, self.spec())?;
        if vcpus.len() != self.vcpus.len() {
            let (saved, here) = (vcpus.len(), self.vcpus.len());
            return Err(MachineError::Mismatch(format!(
                "it has {saved} vCPUs, not {here}"
            )));
        }
        clock::load(&self.vm, &then, bounds)
            .map_err(|e| MachineError::State("set the clock", e))?;
        let now = clock::save(&self.vm, self.tsc)
            .map_err(|e| MachineError::State("read the clock", e))?;
        let passed = Passed::between(&then, &now, self.tsc);
        tracing::debug!(
            ns = passed.ns,
            tsc_behind = passed.tsc_behind as i64,
            "the guest's clocks moved on"
        );
        self.load_irqchips(&irqchips)?;
        let pit: kvm_pit_state2 = bytes::to("the PIT", &pit).map_err(|e| mismatch(&e))?;
        self.vm
            .set_pit2(&pit)
            .map_err(|e| MachineError::State("set the PIT", os_error(e)))?;
        for (index, state) in vcpus.iter().enumerate() {
            vcpu_state::load(&self.vcpus.fd(index), &self.vcpu_caps, state, passed)
                .map_err(|e| MachineError::Vcpu(index as u32, e))?;
        }
        self.devices.load(devices)?;
        self.announcements.make_due();
        Ok(run)
    }

    fn load_irqchips(&self, saved: &[Vec<u8>]) -> Result<(), MachineError> {
        if saved.len() != IRQCHIPS.len() {
            let found = saved.len();
            return Err(MachineError::Mismatch(format!(
                "it has {found} interrupt controllers"
            )));
        }
        for (bytes, expected) in saved.iter().zip(IRQCHIPS) {
            let chip: kvm_irqchip =
                bytes::to("an interrupt controller", bytes).map_err(|e| mismatch(&e))?;
            if chip.chip_id != expected {
                let found = chip.chip_id;
                return Err(MachineError::Mismatch(format!(
                    "interrupt controller {found}"
                )));
            }
            self.vm
                .set_irqchip(&chip)
                .map_err(|e| MachineError::State("set the interrupt controllers", os_error(e)))?;
        }
        Ok(())
    }
}

fn mismatch(e: &bytes::BytesError) -> MachineError {
    MachineError::Mismatch(e.to_string())
}
