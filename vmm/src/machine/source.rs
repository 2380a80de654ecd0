//! The running machine as the source of a migration.

use std::sync::Arc;

use migration::GuestRam;
use migration::observation::{Observation, Side};
use migration::vm::{MachineDescription, RunState, SourceVm, VmResult};

use super::power::PauseReason;
use super::state::RunStateV1;
use super::{DirtyLog, Machine, MachineError, late};

/// A machine that may leave this host.
pub(super) struct MachineSource {
    machine: Arc<Machine>,
    name: String,
}

impl MachineSource {
    pub(super) fn new(machine: Arc<Machine>, name: &str) -> Self {
        Self {
            machine,
            name: name.to_owned(),
        }
    }
}

fn observed(e: &MachineError) -> Observation {
    e.observed(Side::Source)
}

impl SourceVm for MachineSource {
    fn describe(&self) -> VmResult<MachineDescription> {
        self.machine.spec().describe(&self.name)
    }

    fn run_state(&self) -> RunState {
        if self.machine.paused_for(PauseReason::User) {
            RunState::Paused
        } else {
            RunState::Running
        }
    }

    fn ram(&self) -> &GuestRam {
        self.machine.ram()
    }

    fn offer_disks(&self) -> VmResult<()> {
        self.machine
            .devices()
            .claims
            .offer()
            .map_err(|e| observed(&e))
    }

    fn reclaim_disks(&self) -> VmResult<()> {
        self.machine
            .devices()
            .claims
            .reclaim()
            .map_err(|e| observed(&e))
    }

    fn start_dirty_log(&self) -> VmResult<()> {
        self.machine
            .set_dirty_log(DirtyLog::On)
            .map_err(|e| observed(&e))
    }

    fn stop_dirty_log(&self) -> VmResult<()> {
        self.machine
            .set_dirty_log(DirtyLog::Off)
            .map_err(|e| observed(&e))
    }

    fn fetch_dirty(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        if !self.machine.paused_for(PauseReason::Migration) {
            // Between two passes, where it costs no downtime.
            self.machine.devices().flush().map_err(|e| observed(&e))?;
        }
        self.machine.fetch_dirty(dirty).map_err(|e| observed(&e))
    }

    fn clear_dirty(&self, region: usize, first_page: u64, bits: &[u64]) -> VmResult<()> {
        self.machine
            .clear_dirty(region, first_page, bits)
            .map_err(|e| observed(&e))
    }

    fn share_processors(&self, threads: usize) {
        self.machine.share_processors(threads);
    }

    fn pause(&self) -> VmResult<()> {
        self.machine
            .pause(PauseReason::Migration)
            .map_err(|e| observed(&e))?;
        match self.machine.end() {
            Some(why) => {
                let message = "the guest ended while it was being migrated";
                let ended = Observation::new(Side::Source, "guest.ended", message);
                Err(ended.caused_by(why.clone()))
            }
            None => Ok(()),
        }
    }

    fn resume(&self) -> VmResult<()> {
        self.machine
            .resume(PauseReason::Migration)
            .map_err(|e| observed(&e))
    }

    fn save_state(&self) -> VmResult<Vec<u8>> {
        let run = match self.run_state() {
            RunState::Running => RunStateV1::Running,
            RunState::Paused => RunStateV1::Paused,
        };
        self.machine.save(run).map_err(|e| observed(&e))
    }

    fn late(&self) -> Option<Vec<u8>> {
        late::collect(&self.machine.devices().nets)
    }

    fn release(&self) {
        self.machine.devices().claims.release();
    }
}
