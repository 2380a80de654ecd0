//! What the threads of a device's queues and its transport have in common: device, rings, and the state
//! that both change.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::{Arrived, Backend};
use migration::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use super::announcer::Notice;
use super::awaited::Awaited;
use super::away::Away;
use super::device::{DeviceKind, VirtioDevice};
use super::gate::Gate;
use super::notify::ConfigOwner;
use super::ring::Ring;
use crate::Error;
use crate::interrupt::Interrupt;

/// Complaints about a guest that are logged; a guest can cause any number.
const MOST_COMPLAINTS: u32 = 16;

/// What the queues' threads share with the transport.
pub(crate) struct Shared {
    pub(super) kind: DeviceKind,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) ram: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// The rings of each queue.
    pub(super) rings: Vec<Mutex<Ring>>,
    /// Written by the driver's notification, by the device and by the gate; read by the threads.
    pub(super) kicks: Vec<EventFd>,
    pub(super) status: AtomicU32,
    pub(super) interrupt_status: AtomicU32,
    pub(super) driver_features: AtomicU64,
    /// Counts the changes of the configuration space.
    pub(super) config_generation: AtomicU32,
    pub(super) gate: Gate,
    /// Of a device that has its requests carried out by a disk: which of its threads are kept by one.
    pub(super) away: Option<Away>,
    /// Counts how often something came for which requests may be parked.
    pub(super) arrivals: AtomicU64,
    /// What backends tell of them; always the same, so that one which is told twice knows it.
    arrived: Arrived,
    complaints: AtomicU32,
}

impl Shared {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        interrupt: Arc<dyn Interrupt>,
        (rings, kicks): (Vec<Mutex<Ring>>, Vec<EventFd>),
        away: Option<Away>,
        arrived: Arrived,
    ) -> Self {
        Self {
            kind: device.kind(),
            device,
            ram,
            interrupt,
            rings,
            kicks,
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            driver_features: AtomicU64::new(0),
            config_generation: AtomicU32::new(0),
            gate: Gate::default(),
            away,
            arrivals: AtomicU64::new(0),
            arrived,
            complaints: AtomicU32::new(0),
        }
    }

    /// Wakes the threads of all queues.
    pub(super) fn kick_all(&self) {
        for queue in 0..self.kicks.len() {
            self.kick(queue);
        }
        if let Some(away) = &self.away {
            away.wake();
        }
    }

    /// Has a backend tell when something has come.
    pub(super) fn hear_arrivals(&self, backend: &dyn Backend) {
        backend.disk().tell_arrivals(Arc::clone(&self.arrived));
    }

    /// Has all requests tried again that are parked: something has come, or they are to go on.
    pub(super) fn retry_parked(&self) {
        self.arrivals.fetch_add(1, Ordering::SeqCst);
        self.kick_all();
    }

    /// Wakes the thread of one queue.
    pub(super) fn kick(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // Fails only when the counter is full, and then the thread is about to wake up.
            let _pending = kick.write(1);
        }
    }

    /// Logs what a guest did wrong, the first few times.
    pub(super) fn complain(&self, what: &dyn fmt::Display) {
        if self.is_worth_a_line() {
            tracing::warn!(device = self.kind.name(), %what, "guest driver misbehaves");
        }
    }

    /// Logs what the host does not give the device, which is no fault of the guest, the first few times.
    pub(super) fn host_fails(&self, what: &dyn fmt::Display) {
        if self.is_worth_a_line() {
            tracing::warn!(device = self.kind.name(), %what, "the host fails the device");
        }
    }

    fn is_worth_a_line(&self) -> bool {
        let before = self.complaints.fetch_add(1, Ordering::Relaxed);
        if before >= MOST_COMPLAINTS {
            // Stays far from wrapping around.
            self.complaints.store(MOST_COMPLAINTS, Ordering::Relaxed);
        }
        before < MOST_COMPLAINTS
    }

    /// Tells the driver that the device works again only after a reset.
    pub(super) fn need_reset(&self, why: &dyn fmt::Display) {
        self.complain(why);
        self.status
            .fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device by what is behind it, or by its kind.
    pub(super) fn name(&self) -> String {
        let storage = self.device.storage();
        storage.unwrap_or_else(|| self.kind.name().into())
    }

    /// What is `awaited` of the device has not come in `waited`.
    pub(super) fn hangs(&self, awaited: Awaited, waited: Duration) -> Error {
        Error::Hangs {
            device: self.name(),
            awaited: awaited.text(),
            waited,
        }
    }

    /// Interrupts the driver for what was completed, if that is due.
    pub(super) fn give(&self, notice: Notice) {
        if notice == Notice::Due {
            self.raise(VIRTIO_MMIO_INT_VRING);
        }
    }

    pub(super) fn raise(&self, cause: u32) {
        self.interrupt_status.fetch_or(cause, Ordering::SeqCst);
        if let Err(error) = self.interrupt.trigger() {
            tracing::warn!(device = self.kind.name(), %error, "guest cannot be interrupted");
        }
    }

    /// Whether requests may be taken.
    pub(super) fn active(&self) -> bool {
        const STATES: u32 =
            VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        self.status.load(Ordering::SeqCst) & STATES == VIRTIO_CONFIG_S_DRIVER_OK
    }
}

impl ConfigOwner for Shared {
    fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        if self.active() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }
}
