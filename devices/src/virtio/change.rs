//! What a driver may ask for at any time and what can be done only while no request is in flight: a
//! reset of the device, and a queue that is not to be used any more.
//!
//! A request may be in flight for as long as the storage behind the device likes, and a vCPU that waits
//! for it can be neither paused nor stopped. So the write of the register waits for a moment only, for
//! drivers that take the reset for done when it returns. After that the register that was written keeps
//! its old value, as one that the driver reads back shows (virtio 1.2, 2.4.2 and 4.2.2.2), until the last
//! request has ended: up to then it may fill the driver's memory, and afterwards nothing does.

use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::registers::Registers;
use super::transport::MmioTransport;
use super::unfinished::Change;
use crate::locked::locked;

/// How long a vCPU waits for requests to end, for a driver that does not read the register back.
const GRACE: Duration = Duration::from_secs(1);

impl MmioTransport {
    /// Makes a change as soon as no request is in flight; now, if that is so in a moment.
    pub(super) fn change(&self, registers: &mut Registers, change: Change) {
        let shared = &self.shared;
        if registers.unfinished.holds(change) {
            return;
        }
        if registers.unfinished.is_empty() {
            shared.gate.close(|| shared.kick_all());
        }
        registers.unfinished.push(change);
        if shared.gate.drained_within(GRACE) {
            self.finish(registers);
        } else {
            tracing::warn!(
                device = shared.name(),
                ?change,
                "the guest's change waits for requests that do not end"
            );
        }
    }

    /// Makes the changes that waited, if no request is in flight any more. Called before the driver is
    /// shown anything that depends on them.
    pub(super) fn finish(&self, registers: &mut Registers) {
        let shared = &self.shared;
        if registers.unfinished.is_empty() || !shared.gate.drained_within(Duration::ZERO) {
            return;
        }
        let changes = registers.unfinished.take();
        if changes.contains(&Change::Reset) {
            self.reset(registers);
        } else {
            for change in changes {
                if let Change::StopQueue(index) = change {
                    self.stop_queue(registers, index);
                }
            }
        }
        shared.gate.open();
        // Queues that go on may have been notified meanwhile.
        shared.kick_all();
    }

    /// The status that the driver sees: not 0 before a reset is done, and nothing of what was agreed
    /// before, so that a driver which does not wait finds out that the device is not ready for it.
    pub(super) fn shown_status(&self, registers: &Registers) -> u32 {
        if registers.unfinished.is_reset() {
            VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.shared.status.load(Ordering::SeqCst)
        }
    }

    fn stop_queue(&self, registers: &mut Registers, index: usize) {
        if let Some(ring) = self.shared.rings.get(index) {
            locked(ring).stop();
        }
        if let Some(ready) = registers.ready.get_mut(index) {
            *ready = false;
        }
    }

    fn reset(&self, registers: &mut Registers) {
        let shared = &self.shared;
        for ring in &shared.rings {
            locked(ring).reset();
        }
        shared.device.reset();
        *registers = Registers::new(shared.rings.len());
        shared.driver_features.store(0, Ordering::SeqCst);
        shared.interrupt_status.store(0, Ordering::SeqCst);
        shared.status.store(0, Ordering::SeqCst);
    }
}
