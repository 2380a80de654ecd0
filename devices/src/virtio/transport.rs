//! A device with its queues and their threads, from when it is made until it is dropped. What is done with
//! it lies above: its registers, pausing, saving.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::GuestRam;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::away::Away;
use super::device::{DeviceKind, VirtioDevice};
use super::flusher::Flusher;
use super::notify::{ConfigNotifier, QueueWaker};
use super::registers::Registers;
use super::ring::Ring;
use super::shared::Shared;
use crate::interrupt::Interrupt;
use crate::threads::{self, ThreadKind};
use crate::{Error, Result};

/// Features of the transport.
const TRANSPORT_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

/// How long the drop of a device waits for its threads to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// A virtio device in MMIO space: its registers, its queues and their threads.
pub struct MmioTransport {
    pub(super) shared: Arc<Shared>,
    pub(super) features: u64,
    pub(super) registers: Mutex<Registers>,
    /// Whether [`MmioTransport::pause`] keeps the gate closed.
    pub(super) paused: Mutex<bool>,
    /// Held for as long as a pivot takes.
    pub(super) pivots: Mutex<()>,
    pub(super) flusher: Flusher,
    threads: Vec<JoinHandle<()>>,
}

impl MmioTransport {
    /// Puts `device` behind a transport, running and reset.
    ///
    /// # Errors
    /// When its event descriptors or threads cannot be made.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Arc<Self>> {
        let name = device.kind().name();
        let kind = match device.kind() {
            DeviceKind::Block => ThreadKind::Disk,
            DeviceKind::Net => ThreadKind::Net,
            DeviceKind::Console | DeviceKind::Rng => ThreadKind::Queue,
        };
        let features = device.features() | TRANSPORT_FEATURES;
        let event_error = |source| Error::EventFd {
            device: name,
            source,
        };
        let mut rings = Vec::new();
        let mut kicks = Vec::new();
        let mut wakers = Vec::new();
        for (queue, &size) in device.queue_sizes().iter().enumerate() {
            let ring = Queue::new(size).map_err(|_| Error::QueueSize {
                device: name,
                queue,
                size,
            })?;
            rings.push(Mutex::new(Ring::new(ring)));
            let kick = EventFd::new(0).map_err(event_error)?;
            wakers.push(QueueWaker::new(kick.try_clone().map_err(event_error)?));
            kicks.push(kick);
        }
        device.attach(wakers);
        let away = device.disk_requests().map(|_| Away::new(rings.len()));
        let away = away.transpose().map_err(event_error)?;
        let shared = Arc::new_cyclic(|owner: &Weak<Shared>| {
            let owner = Weak::clone(owner);
            let arrived = move || {
                if let Some(shared) = owner.upgrade() {
                    shared.retry_parked();
                }
            };
            let arrived = Arc::new(arrived);
            Shared::new(device, ram, interrupt, (rings, kicks), away, arrived)
        });
        let owner = Arc::downgrade(&shared);
        shared.device.attach_config(ConfigNotifier::new(owner));
        if let Some(requests) = shared.device.disk_requests() {
            shared.hear_arrivals(&*requests.backing().current());
        }
        let registers = Mutex::new(Registers::new(shared.rings.len()));
        let mut transport = Self {
            shared,
            features,
            registers,
            paused: Mutex::new(false),
            pivots: Mutex::new(()),
            flusher: Flusher::default(),
            threads: Vec::new(),
        };
        for index in 0..transport.shared.rings.len() {
            transport.start(kind, format!("{name}-{index}"), move |shared| {
                shared.run(index);
            })?;
        }
        if transport.shared.away.is_some() {
            transport.start(kind, format!("{name}-s"), Shared::stand_in)?;
        }
        Ok(Arc::new(transport))
    }

    /// Starts a thread that stands still when the device does. Dropping the transport ends it.
    fn start(
        &mut self,
        kind: ThreadKind,
        name: String,
        run: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.gate.expect();
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(256 << 10)
            .spawn(move || {
                threads::begin(kind);
                run(&shared);
            });
        match thread {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(source) => {
                self.shared.gate.unexpect();
                Err(Error::Thread {
                    device: self.shared.kind.name(),
                    source,
                })
            }
        }
    }

    /// One event descriptor per queue, for `KVM_IOEVENTFD` at [`QUEUE_NOTIFY_OFFSET`](super::mmio::QUEUE_NOTIFY_OFFSET).
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.shared.kicks
    }

    /// Processes what is in a queue on the caller's thread, for tests that need to know when that was
    /// done; otherwise the queue's own thread does it when it is notified.
    #[doc(hidden)]
    pub fn serve_now(&self, queue: usize) {
        if queue < self.shared.rings.len() {
            self.shared.serve_once(queue);
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.shared.gate.stop();
        self.shared.kick_all();
        if !self.shared.gate.left_within(FAREWELL) {
            // A thread that is left behind keeps what its request needs, and ends with it.
            let device = self.shared.name();
            tracing::warn!(device, "a request does not end, and is left behind");
            return;
        }
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.shared.kind)
            .field("status", &self.shared.status)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}
