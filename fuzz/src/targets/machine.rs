//! The saved state of a whole machine, loaded into the real KVM. The guest is never run with it.

use std::sync::{Mutex, OnceLock, PoisonError};

use machine::Machine;
use machine::fuzzing;
use machine::state::{Form, RunStateV1};

use crate::{Memory, Target};

/// A state for a machine of one vCPU without disks.
pub(super) const MACHINE: Target = Target {
    name: "machine",
    run,
    seeds,
    words: &["VMMS", "console", "rng", "vcpu.0", "virtio-mmio.0"],
    longest: 12 << 10,
    memory: Memory {
        base: 8 << 20,
        per_byte: 256,
    },
};

/// One for all inputs: a machine that never ran takes any number of states.
fn machine() -> Option<&'static Mutex<Machine>> {
    static MACHINE: OnceLock<Option<Mutex<Machine>>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| match fuzzing::machine() {
        Ok(machine) => Some(Mutex::new(machine)),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    });
    machine.as_ref()
}

fn run(bytes: &[u8]) {
    if let Some(machine) = machine() {
        let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.load(bytes).is_ok() {
            let saved = machine.save(RunStateV1::Running);
            let saved = saved.expect("what was loaded can be saved");
            assert!(machine.load(&saved).is_ok(), "what was saved can be loaded");
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let Some(machine) = machine() else {
        return Vec::new();
    };
    let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    let components = machine.save(RunStateV1::Paused);
    let one = machine.save_as(RunStateV1::Paused, &Form::One);
    [components, one].into_iter().flatten().collect()
}
