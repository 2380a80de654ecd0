//! What stopping the guest and saving it will cost, tried out while it runs.

use std::time::Instant;

use migration::vm::Rehearsal;

use crate::error::MachineError;
use crate::machine::Machine;
use crate::vcpu::state as vcpu_state;

impl Machine {
    /// Stops the vCPUs, reads what would be saved of them, and lets them go on. The devices run
    /// throughout: their state is little, and what they wait for is learnt by flushing them.
    ///
    /// # Errors
    /// When KVM refuses to tell a state.
    pub fn rehearse(&self) -> Result<Rehearsal, MachineError> {
        let measure = || {
            let began = Instant::now();
            self.vcpus.pause();
            let stop = began.elapsed();
            let reading = Instant::now();
            let read = (0..self.vcpus.len()).try_for_each(|index| {
                let state = vcpu_state::save(&self.vcpus.fd(index), &self.vcpu_caps);
                state
                    .map(drop)
                    .map_err(|e| MachineError::Vcpu(index as u32, e))
            });
            let save = reading.elapsed();
            read.map(|()| Rehearsal { stop, save })
        };
        let rehearsal = self.reasons.between_transitions(measure, || {
            // As a vCPU that ended its guest tells that before it parks.
            if !self.ended() {
                self.vcpus.resume();
            }
        })?;
        tracing::debug!(?rehearsal, "rehearsed the switch-over");
        Ok(rehearsal)
    }
}
