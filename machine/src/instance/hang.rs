//! Kernels that kvm_pvm neither runs nor refuses: a `vmcall` in the guest's kernel spins inside
//! `KVM_RUN` for ever, so the instruction must be looked at from outside.

use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use migration::observation::{Observation, Side};

use crate::boot::refusal;
use crate::events::GuestEvent;
use crate::machine::Machine;
use crate::power::PauseReason;
use crate::threads::{self, ThreadKind};

/// How often the vCPUs are looked at while the kernel boots.
const INTERVAL: Duration = Duration::from_millis(500);
/// How many times: a kernel that is still up by then has its hypercalls behind it.
const LOOKS: u32 = 60;

/// Watches a kernel that boots on kvm_pvm, on a thread of its own that ends with the machine.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn watch(machine: &Arc<Machine>) -> io::Result<()> {
    let machine = Arc::downgrade(machine);
    thread::Builder::new()
        .name("boot-watch".into())
        .spawn(move || {
            threads::begin(ThreadKind::Caretaker);
            let mut before = Vec::new();
            for _ in 0..LOOKS {
                thread::sleep(INTERVAL);
                let Some(machine) = machine.upgrade() else {
                    return;
                };
                if machine.ended() {
                    return;
                }
                let now = machine.stuck_vcpus();
                if let Some((_, why)) = now.iter().find(|seen| before.contains(*seen)) {
                    let why = Observation::new(Side::Source, "guest.not-runnable", why.clone());
                    machine.events.tell(GuestEvent::Failed(why));
                    return;
                }
                before = now;
            }
        })?;
    Ok(())
}

impl Machine {
    /// vCPUs that stand at an instruction which never ends, by address, with the reason.
    fn stuck_vcpus(&self) -> Vec<(u64, String)> {
        if self.paused_for(PauseReason::User) || self.paused_for(PauseReason::Migration) {
            return Vec::new();
        }
        if let Err(e) = self.pause(PauseReason::Inspection) {
            // It is paused all the same, and must go on.
            tracing::warn!(error = %e, "devices did not drain for a look at the guest");
        }
        let stuck = (0..self.vcpus.len())
            .filter_map(|index| {
                let (rip, bytes) = self.vcpus.instruction(index, &self.ram);
                refusal::describe_hang(&bytes, rip, self.spec.backend).map(|why| (rip, why))
            })
            .collect();
        if let Err(e) = self.resume(PauseReason::Inspection) {
            tracing::warn!(error = %e, "the guest does not go on");
        }
        stuck
    }
}
