//! The thread of a queue: takes requests from the ring, has them processed, and completes them.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use migration::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{BadRequest, Chain};
use super::gate::Gate;
use super::{DeviceKind, VirtioDevice};
use crate::Error;
use crate::interrupt::Interrupt;
use crate::locked::locked;

/// Completed requests are announced at the latest after so many ...
const MOST_UNANNOUNCED: u32 = 16;
/// ... or when the first of them has waited so long.
const LONGEST_UNANNOUNCED: Duration = Duration::from_micros(100);
/// Complaints about a guest that are logged; a guest can cause any number.
const MOST_COMPLAINTS: u32 = 16;

/// What the queues' threads share with the transport.
pub(super) struct Shared {
    pub(super) kind: DeviceKind,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) ram: GuestRam,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Vec<Mutex<Queue>>,
    /// Written by the driver's notification, by the device and by the gate; read by the threads.
    pub(super) kicks: Vec<EventFd>,
    pub(super) status: AtomicU32,
    pub(super) interrupt_status: AtomicU32,
    pub(super) driver_features: AtomicU64,
    pub(super) gate: Gate,
    complaints: AtomicU32,
}

impl Shared {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        interrupt: Arc<dyn Interrupt>,
        queues: Vec<Mutex<Queue>>,
        kicks: Vec<EventFd>,
    ) -> Self {
        Self {
            kind: device.kind(),
            device,
            ram,
            interrupt,
            queues,
            kicks,
            status: AtomicU32::new(0),
            interrupt_status: AtomicU32::new(0),
            driver_features: AtomicU64::new(0),
            gate: Gate::default(),
            complaints: AtomicU32::new(0),
        }
    }

    /// Wakes the threads of all queues.
    pub(super) fn kick_all(&self) {
        for queue in 0..self.kicks.len() {
            self.kick(queue);
        }
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
        let before = self.complaints.fetch_add(1, Ordering::Relaxed);
        if before < MOST_COMPLAINTS {
            tracing::warn!(device = self.kind.name(), %what, "guest driver misbehaves");
        } else {
            // Stays far from wrapping around.
            self.complaints.store(MOST_COMPLAINTS, Ordering::Relaxed);
        }
    }

    /// Tells the driver that the device works again only after a reset.
    pub(super) fn need_reset(&self, why: &dyn fmt::Display) {
        self.complain(why);
        self.status
            .fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// What was asked of the device has not ended in `waited`.
    pub(super) fn hangs(&self, waited: Duration) -> Error {
        let storage = self.device.storage();
        Error::Hangs {
            device: storage.unwrap_or_else(|| self.kind.name().into()),
            waited,
        }
    }

    fn raise(&self, cause: u32) {
        self.interrupt_status.fetch_or(cause, Ordering::SeqCst);
        if let Err(error) = self.interrupt.trigger() {
            tracing::warn!(device = self.kind.name(), %error, "guest cannot be interrupted");
        }
    }

    /// Whether requests may be taken.
    fn active(&self) -> bool {
        const STATES: u32 =
            VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        self.status.load(Ordering::SeqCst) & STATES == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// The life of a queue's thread.
    pub(super) fn run(&self, index: usize) {
        let passenger = self.gate.enter();
        let mut chain = Chain::new();
        while passenger.pass() {
            match self.kicks[index].read() {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(device = self.kind.name(), index, %error, "queue stops");
                    return;
                }
            }
            if let Err(error) = self.serve(index, &mut chain) {
                self.need_reset(&error);
            }
        }
    }

    /// Processes what is in the queue, until it is empty or the gate closes.
    fn serve<'r>(&'r self, index: usize, chain: &mut Chain<'r>) -> Result<(), BadRequest> {
        if !self.active() {
            return Ok(());
        }
        let queue = &mut *locked(&self.queues[index]);
        if !queue.ready() {
            return Ok(());
        }
        let mut announcer = Announcer {
            shared: self,
            completed: 0,
            since: None,
        };
        let result = self.serve_ring(index, queue, chain, &mut announcer);
        // What was completed before something broke is announced too.
        let announced = announcer.announce(queue);
        result.and(announced)
    }

    fn serve_ring<'r>(
        &'r self,
        index: usize,
        queue: &mut Queue,
        chain: &mut Chain<'r>,
        announcer: &mut Announcer<'_>,
    ) -> Result<(), BadRequest> {
        let features = self.driver_features.load(Ordering::SeqCst);
        let limit = usize::from(queue.max_size());
        loop {
            queue.disable_notification(&self.ram).map_err(broken)?;
            loop {
                if self.gate.closed() {
                    // Whoever opens the gate kicks every queue, so that the rest is found again.
                    return Ok(());
                }
                if !self.device.has_work(index) {
                    break;
                }
                let Some(descriptors) = queue.iter(&self.ram).map_err(broken)?.next() else {
                    break;
                };
                let head = descriptors.head_index();
                if head >= queue.size() {
                    return Err(BadRequest::HeadOutOfRange {
                        index: head,
                        size: queue.size(),
                    });
                }
                chain.load(&self.ram, descriptors, limit)?;
                let written = self.device.process(index, chain, features)?;
                queue.add_used(&self.ram, head, written).map_err(broken)?;
                announcer.completed(queue)?;
            }
            announcer.announce(queue)?;
            let more = queue.enable_notification(&self.ram).map_err(broken)?;
            if !more || !self.device.has_work(index) {
                return Ok(());
            }
        }
    }
}

fn broken(error: virtio_queue::Error) -> BadRequest {
    BadRequest::Ring(error.to_string())
}

/// Interrupts the guest for completed requests: soon, but not for each.
struct Announcer<'s> {
    shared: &'s Shared,
    completed: u32,
    since: Option<Instant>,
}

impl Announcer<'_> {
    fn completed(&mut self, queue: &mut Queue) -> Result<(), BadRequest> {
        self.completed += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.completed >= MOST_UNANNOUNCED || since.elapsed() >= LONGEST_UNANNOUNCED {
            self.announce(queue)?;
        }
        Ok(())
    }

    fn announce(&mut self, queue: &mut Queue) -> Result<(), BadRequest> {
        if self.completed == 0 {
            return Ok(());
        }
        self.completed = 0;
        self.since = None;
        let ram = &self.shared.ram;
        // Without EVENT_IDX the driver says by a flag that it polls; looked at behind the fence of
        // `needs_notification`, so that the flag is not older than the completed requests.
        let mut wanted = queue.needs_notification(ram).map_err(broken)?;
        if wanted && !queue.event_idx_enabled() {
            let flags: u16 = ram
                .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
                .map_err(|error| BadRequest::Ring(error.to_string()))?;
            wanted = u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        if wanted {
            self.shared.raise(VIRTIO_MMIO_INT_VRING);
        }
        Ok(())
    }
}
