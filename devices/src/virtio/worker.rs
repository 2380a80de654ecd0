//! The thread of a queue: takes requests from the ring, has them processed, and completes them.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration::GuestRam;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::announcer::Announcer;
use super::chain::{BadRequest, Chain};
use super::gate::Gate;
use super::lent::{Lent, Packets};
use super::poll::poll;
use super::{DeviceKind, VirtioDevice};
use crate::Error;
use crate::interrupt::Interrupt;
use crate::locked::locked;

/// How long a driver that lends too little for the largest packet has to lend more.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long a source of packets that fails is left alone.
const RECOVERY: Duration = Duration::from_secs(1);
/// Complaints about a guest that are logged; a guest can cause any number.
const MOST_COMPLAINTS: u32 = 16;

/// What the queues' threads share with the transport.
pub(crate) struct Shared {
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
    /// Counts the changes of the configuration space.
    pub(super) config_generation: AtomicU32,
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
            config_generation: AtomicU32::new(0),
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

    /// Counts a change of the configuration space and tells a driver that has started.
    pub(super) fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        if self.active() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    pub(super) fn raise(&self, cause: u32) {
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
        let mut hands = Hands {
            chain: Chain::new(),
            lent: Lent::new(),
        };
        let mut wait = Wait::Kick;
        while passenger.pass() {
            let woken = match self.wait(index, wait) {
                Ok(woken) => woken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(device = self.kind.name(), index, %error, "queue stops");
                    return;
                }
            };
            wait = self
                .serve(index, &mut hands, woken)
                .unwrap_or_else(|error| {
                    self.need_reset(&error);
                    Wait::Kick
                });
        }
    }

    /// Processes what is in the queue on the caller's thread.
    pub(super) fn serve_once(&self, index: usize) {
        let mut hands = Hands {
            chain: Chain::new(),
            lent: Lent::new(),
        };
        if let Err(error) = self.serve(index, &mut hands, Woken::Impatient) {
            self.need_reset(&error);
        }
    }

    /// Waits until there may be work again.
    fn wait(&self, index: usize, wait: Wait) -> io::Result<Woken> {
        let kick = &self.kicks[index];
        let packets = match wait {
            Wait::Kick => {
                kick.read()?;
                return Ok(Woken::ByWork);
            }
            Wait::KickOrPatience | Wait::Recovery => None,
            Wait::Packets | Wait::PacketsImpatiently => {
                let features = self.driver_features.load(Ordering::SeqCst);
                self.device.packets(index, features)
            }
        };
        let patience = match wait {
            Wait::KickOrPatience => Some(PATIENCE),
            Wait::Recovery => Some(RECOVERY),
            Wait::Kick | Wait::Packets | Wait::PacketsImpatiently => None,
        };
        let (kicked, events) = poll(kick, packets.map(Packets::waiting), patience)?;
        if kicked {
            // Does not block: this thread alone reads it.
            kick.read()?;
        }
        Ok(if events == 0 || wait == Wait::PacketsImpatiently {
            Woken::Impatient
        } else {
            Woken::ByWork
        })
    }

    /// Processes what is in the queue, until it is empty or the gate closes; what to wait for then.
    fn serve<'r>(
        &'r self,
        index: usize,
        hands: &mut Hands<'r>,
        woken: Woken,
    ) -> Result<Wait, BadRequest> {
        if !self.active() {
            return Ok(Wait::Kick);
        }
        let queue = &mut *locked(&self.queues[index]);
        if !queue.ready() {
            return Ok(Wait::Kick);
        }
        let features = self.driver_features.load(Ordering::SeqCst);
        let mut announcer = Announcer::new(self, queue);
        let result = match self.device.packets(index, features) {
            Some(packets) => self.fill_ring(queue, packets, &mut hands.lent, &mut announcer, woken),
            None => self
                .serve_ring(index, queue, &mut hands.chain, features, &mut announcer)
                .map(|()| Wait::Kick),
        };
        // What was completed before something broke is announced too.
        let announced = announcer.announce(queue);
        result.and_then(|wait| announced.map(|()| wait))
    }

    fn serve_ring<'r>(
        &'r self,
        index: usize,
        queue: &mut Queue,
        chain: &mut Chain<'r>,
        features: u64,
        announcer: &mut Announcer<'_>,
    ) -> Result<(), BadRequest> {
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

pub(super) fn broken(error: virtio_queue::Error) -> BadRequest {
    BadRequest::Ring(error.to_string())
}

/// What the thread of a queue keeps from request to request, so that taking one allocates nothing.
struct Hands<'r> {
    chain: Chain<'r>,
    lent: Lent<'r>,
}

/// What the thread of a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// A kick.
    Kick,
    /// A kick, but not for long: some buffers are there.
    KickOrPatience,
    /// A kick or a packet.
    Packets,
    /// Either, for a driver that lends too little for the largest packet and was waited for.
    PacketsImpatiently,
    /// A kick, or that a source of packets may work again.
    Recovery,
}

/// What woke the thread of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// A kick or a packet.
    ByWork,
    /// As before, and the driver was waited for, in vain, to lend more.
    Impatient,
}
